"""Where the files in a tar archive lie, so that they can be read in place; nothing is ever unpacked.

Reads what tar programs write: USTAR, GNU long names, pax names and sizes. One small read a member and no memory, where
the standard library's reader keeps a kilobyte of each and takes twice as long; and an archive that was cut short
between two members is refused, where that one takes it for a whole one and the rest would be lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from pipeline.errors import UserError

_BLOCK: Final = 512
_MAX_NAME_BYTES: Final = 1 << 20  # of a long name's or pax record's block: more is damage, not a name
_FILES: Final = b"0\0" + b"7"
_FOLDER: Final = b"5"


class Member(NamedTuple):
    """One regular file of an archive.

    Args:
        name: As the archive has it, without a leading "./".
        offset: Where its bytes begin, in the file that holds the archive.
        size: In bytes.
    """

    name: str
    offset: int
    size: int


def members(file: int, first: int, size: int, *, archive: str) -> Iterator[Member]:
    """Walk over the regular files of an archive, in its own order; folders are passed over.

    Args:
        file: File descriptor of what holds the archive.
        first: Where in it the archive begins: an archive may lie in another one.
        size: The archive's size in bytes.
        archive: Its name in messages.

    Raises:
        UserError: If the archive is damaged or cut short, or a member is a link or a device, or its name is absolute
            or leads out of its folder.
    """
    at, end = first, first + size
    name, length = None, None  # what a long-name or pax block says of the member after it
    while True:
        header = os.pread(file, _BLOCK, at) if at + _BLOCK <= end else b""
        if len(header) < _BLOCK:
            raise UserError(f"{archive}: truncated: no end-of-archive mark in {size:,} bytes; fetch it again")
        if not header.strip(b"\0"):
            return
        at += _BLOCK
        own_size = _number(header[124:136])
        if own_size is None or _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            raise UserError(
                f"{archive}: no tar archive, or damaged: no header at byte {at - _BLOCK - first:,}; fetch it again"
            )
        kind = header[156:157]
        bytes_here = own_size if length is None or kind in b"xgLK" else length
        if kind in b"xgLK":
            if kind in b"xL":
                if bytes_here > _MAX_NAME_BYTES:
                    raise UserError(f"{archive}: the header at byte {at - _BLOCK - first:,} is damaged; fetch it again")
                block = os.pread(file, bytes_here, at)
                if kind == b"L":
                    name = _text(block)
                else:
                    name, length = _pax(block, name)
        else:
            shown = name or _own_name(header)
            if kind != _FOLDER:
                _refuse(archive, shown, kind)
                yield Member(shown.removeprefix("./"), at, bytes_here)
            name, length = None, None
        at += -(-bytes_here // _BLOCK) * _BLOCK


def _refuse(archive: str, name: str, kind: bytes) -> None:
    if name.startswith("/") or ".." in name.split("/"):
        raise UserError(
            f"{archive}: member {name!r} has an absolute path or one with '..'; nothing was read: get the original file"
        )
    if kind not in _FILES:
        raise UserError(
            f"{archive}: member {name!r} is no regular file but of type {kind.decode('latin-1')!r} (a link or a "
            "device), which is not followed: get the original file"
        )


def _own_name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[345] and header[257:263] == b"ustar\0" else ""  # GNU keeps times there
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return os.fsdecode(field.partition(b"\0")[0])


def _number(field: bytes) -> int | None:
    """Read an octal field, or a binary one that GNU tar writes for sizes from 8 GiB on."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    return None if digits.strip(b"01234567") else int(digits or b"0", 8)


def _pax(block: bytes, name: str | None) -> tuple[str | None, int | None]:
    """Read path and size from pax records, each `LENGTH KEY=VALUE` and a line feed."""
    size = None
    at = 0
    while at < len(block):
        digits, _, _ = block[at:].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, _, value = block[at + len(digits) + 1 : at + length - 1].partition(b"=")
        if key == b"path":
            name = os.fsdecode(value)
        elif key == b"size" and value.isdigit():
            size = int(value)
        at += length or len(block)
    return name, size
