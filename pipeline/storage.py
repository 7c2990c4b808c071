"""Folders of files, on a disk or in any storage that fsspec reaches; the one place where fsspec enters.

S3's endpoint, region and credentials come from where all its tools take them (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
AWS_PROFILE, ~/.aws …). All retries are made here: those of botocore and s3fs are switched off, because they leave gaps
(a body that breaks off, a refused connection) and multiply where they overlap.
"""

from __future__ import annotations

import errno
import hashlib
import io
import mmap
import os
import random
import shutil
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, TypeVar, cast, runtime_checkable

from pipeline.atomic import replacing
from pipeline.errors import DamagedImageError, UserError

Result = TypeVar("Result")

_TRIES: Final = 6
_PAUSE_S: Final = 0.1  # before the second try; 2.5 times as long before each further one, 6.5 s in all
_TIMEOUT_S: Final = 60  # for an answer; a large upload's completion takes that long
_PART_BYTES: Final = 16 << 20
_READ_AHEAD_BYTES: Final = 8 << 20
_BAD_LUCK: Final = ("BadDigest", "IncompleteBody", "OperationAborted", "RequestTimeout", "XAmzContentSHA256Mismatch")


@runtime_checkable
class View(Protocol):
    """A file as `view[first:last]` gives its bytes."""

    def __getitem__(self, window: slice) -> bytes:
        """Return bytes; DamagedImageError if the file ends before `last`."""


class Folder(ABC):
    """A folder of a data set's files. Survives pickling and forks: connections are opened where they are used.

    Names may lie one folder deeper, such as ".dilute-build/plan.json"; a folder is there once a file is in it. Local
    folders raise OSError when the disk refuses; others raise UserError when the storage still refuses after retries.
    FileNotFoundError is the same everywhere.
    """

    local: Path | None = None  # for what only local folders can do: locks, memory-maps

    @abstractmethod
    def __str__(self) -> str:
        """Return the path or address, to be followed by "/NAME"."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return a whole file."""

    @abstractmethod
    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Return a part of a file.

        Raises:
            DamagedImageError: If the file ends before it. The storage works, and who asked knows which image it is:
                one image cut short is like one that fails its checksum.
        """

    @abstractmethod
    def view(self, name: str) -> View:
        """Open a file for reads in any order: a memory-map, or one request a slice."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Return a file's size in bytes; None if there is no such file."""

    @abstractmethod
    def names(self, folder: str = "") -> list[str]:
        """List the files that lie directly in the folder, or in one inside it; none if it is not there."""

    @abstractmethod
    def replacing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Write a file from start to end; it is published whole when the block ends, not at all if it raises."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file if it is there."""

    @abstractmethod
    def remove_folder(self, name: str) -> None:
        """Remove a folder inside this one, with all that it holds, if it is there."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Open a file for reading in order, with read-ahead."""

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, or nothing."""
        with self.replacing(name) as file:
            file.write(data)

    def digest(self, name: str) -> tuple[int, str]:
        """Read a file through; return its size in bytes and its SHA-256."""
        with self.open(name) as file:
            sha256 = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]
            return file.tell(), sha256.hexdigest()


def open_folder(where: str | Path) -> Folder:
    """Open a folder; nothing is asked of its storage yet.

    Args:
        where: A path, or an address such as s3://BUCKET/FOLDER.

    Raises:
        UserError: If it is an address of no storage that fsspec knows, its driver is not installed, or it ends after
            "://".
    """
    text = str(where)
    protocol, mark, rest = text.partition("://")
    if text.startswith("s3:/") and not mark:
        raise UserError(f"{text} is a path; the address is s3://{text[4:]}")
    if not mark:
        return LocalFolder(text)
    if not rest.strip("/"):
        raise UserError(f"{text} names no bucket; give an address such as s3://BUCKET/FOLDER")
    if protocol == "file":
        return LocalFolder(rest)
    import fsspec

    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError:
        raise UserError(
            f"{text}: no storage is called {protocol!r}; give a folder, or an address such as s3://BUCKET/FOLDER"
        ) from None
    except ImportError as error:
        raise UserError(f"{text}: the driver of {protocol}:// is missing: {_one_line(error)}") from None
    return RemoteFolder(text)


class LocalFolder(Folder):
    """A folder on a disk.

    Args:
        path: Of the folder; it is made when the first file is written.
    """

    local: Path

    def __init__(self, path: str | Path) -> None:
        self.local = Path(path)

    def __str__(self) -> str:
        return str(self.local)

    def read(self, name: str) -> bytes:
        """Return a whole file."""
        return (self.local / name).read_bytes()

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Return a part of a file; DamagedImageError if the file ends before it."""
        with (self.local / name).open("rb") as file:
            file.seek(offset)
            return _whole(file.read(size), size, self, name)

    def view(self, name: str) -> View:
        """Map a file."""
        return _Mapped(self, name)

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes, or None."""
        path = self.local / name
        return path.stat().st_size if path.is_file() else None

    def names(self, folder: str = "") -> list[str]:
        """List the files in a folder."""
        path = self.local / folder
        return sorted(entry.name for entry in os.scandir(path) if entry.is_file()) if path.is_dir() else []

    @contextmanager
    def replacing(self, name: str) -> Iterator[BinaryIO]:
        """Write a `.part`, which is synced and renamed when the block ends."""
        path = self.local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            yield file

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        (self.local / name).unlink(missing_ok=True)

    def remove_folder(self, name: str) -> None:
        """Remove a folder if it is there."""
        while (self.local / name).is_dir():  # another process may remove it too, file by file
            with suppress(FileNotFoundError):
                shutil.rmtree(self.local / name)

    def open(self, name: str) -> BinaryIO:
        """Open a file; the system reads ahead."""
        return (self.local / name).open("rb")


class RemoteFolder(Folder):
    """A folder in other storage.

    Args:
        url: Its address, with a protocol that fsspec knows.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._is_s3 = url.partition("://")[0] in ("s3", "s3a")
        # By process: after a fork, its threads are gone but its sockets are not, so the parent's is left as it is.
        self._connections: dict[int, tuple[Any, str]] = {}

    def __reduce__(self) -> tuple[type[RemoteFolder], tuple[str]]:
        return RemoteFolder, (self.url,)

    def __str__(self) -> str:
        return self.url

    def read(self, name: str) -> bytes:
        """Return a whole file."""
        return self.ask("read", name, lambda files, path: bytes(files.cat_file(path)))

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Return a part of a file; DamagedImageError if the file ends before it."""

        def ask(files: Any, path: str) -> bytes:
            try:
                return bytes(files.cat_file(path, start=offset, end=offset + size))
            except OSError as error:
                if _answer(error)[1] == "InvalidRange":  # all of it lies behind the end
                    return b""
                raise

        return _whole(self.ask("read", name, ask) if size else b"", size, self, name)

    def view(self, name: str) -> View:
        """Open a file of which every slice is a request."""
        if self.size(name) is None:
            raise _not_found(self, name)
        return _Ranges(self, name)

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes, or None."""
        try:
            found = self.ask("look for", name, lambda files, path: files.info(path))
        except FileNotFoundError:
            return None
        return int(found["size"]) if found["type"] == "file" else None

    def names(self, folder: str = "") -> list[str]:
        """List the files in a folder."""

        def ask(files: Any, path: str) -> list[str]:
            found = (entry["name"].rpartition("/") for entry in files.ls(path, detail=True) if entry["type"] == "file")
            return sorted(name for parent, _, name in found if name and parent == path)

        try:
            return self.ask("list", folder, ask)
        except FileNotFoundError:
            return []

    @contextmanager
    def replacing(self, name: str) -> Iterator[BinaryIO]:
        """Upload a file to S3 as it is written; to other storage when the block ends, from a temporary file."""
        if self._is_s3:
            with _Upload(self, name) as upload:
                yield cast(BinaryIO, upload)
        else:
            with tempfile.NamedTemporaryFile(prefix="dilute-") as file:
                yield cast(BinaryIO, file)
                file.flush()
                self.ask("write", name, lambda files, path: files.put_file(file.name, path))

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with suppress(FileNotFoundError):
            self.ask("remove", name, lambda files, path: files.rm_file(path))

    def remove_folder(self, name: str) -> None:
        """Remove a folder if it is there."""

        def ask(files: Any, path: str) -> None:
            files.rm(path, recursive=True)
            if left := files.find(path):  # s3fs says nothing of files that were refused
                raise ConnectionError(f"it did not remove {len(left)} files, the first is {left[0]}")

        with suppress(FileNotFoundError):
            self.ask("remove", name, ask)

    def open(self, name: str) -> BinaryIO:
        """Open a file that is read 8 MiB at a time."""
        size = self.size(name)
        if size is None:
            raise _not_found(self, name)
        return io.BufferedReader(_Download(self, name, size), _READ_AHEAD_BYTES)

    def ask(self, doing: str, name: str, request: Callable[[Any, str], Result]) -> Result:
        """Send a request, again and again where it may help.

        Args:
            doing: What it does, for messages: "read", "write" ….
            name: The file.
            request: Called with fsspec's file system and the path in it.

        Raises:
            FileNotFoundError: If there is no such file.
            UserError: If the storage refuses, or still does after all tries.
        """
        where = f"{self.url}/{name}".rstrip("/")
        tries = 0
        while True:
            tries += 1
            try:
                files, root = self._connect()
                return request(files, f"{root}/{name}".rstrip("/"))
            except Exception as error:
                status, code, reason = _answer(error)
                if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
                    raise _not_found(self, name) from error
                passing = _passes(error, status, code)
                if passing and tries < _TRIES:
                    time.sleep(_PAUSE_S * 2.5 ** (tries - 1) * random.uniform(0.5, 1))  # not all workers at once
                    continue
                often = f", {tries} times" if passing else ""
                raise UserError(f"cannot {doing} {where}{often}: {reason}; {_advice(error, code)}") from error

    def _connect(self) -> tuple[Any, str]:
        process = os.getpid()
        if process not in self._connections:
            import fsspec

            options: dict[str, Any] = {"use_listings_cache": False}  # others write there too
            if self._is_s3:
                retries = {"total_max_attempts": 1}
                options["config_kwargs"] = {"retries": retries, "connect_timeout": 10, "read_timeout": _TIMEOUT_S}
                options["max_concurrency"] = 1  # else a read of a whole file asks for its size first
            files, root = fsspec.core.url_to_fs(self.url, **options)
            if self._is_s3:
                files.retries = 1
            self._connections[process] = files, root.rstrip("/")
        return self._connections[process]


class _Mapped:
    """A memory-map whose slices are whole or an error."""

    def __init__(self, folder: LocalFolder, name: str) -> None:
        self._where = folder, name
        with (folder.local / name).open("rb") as file:
            empty = os.fstat(file.fileno()).st_size == 0  # which cannot be mapped
            self._bytes = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __getitem__(self, window: slice) -> bytes:
        return _whole(self._bytes[window], window.stop - window.start, *self._where)


class _Ranges:
    """A file of which every slice is a request."""

    def __init__(self, folder: RemoteFolder, name: str) -> None:
        self._where = folder, name

    def __getitem__(self, window: slice) -> bytes:
        folder, name = self._where
        return folder.read_range(name, window.start, window.stop - window.start)


class _Download(io.RawIOBase):
    """A file that is read in ranges; the buffer around it reads ahead."""

    mode = "rb"

    def __init__(self, folder: RemoteFolder, name: str, size: int) -> None:
        super().__init__()
        self.name = f"{folder}/{name}"
        self._where = folder, name
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        folder, name = self._where
        count = max(0, min(len(buffer), self._size - self._at))
        buffer[:count] = folder.read_range(name, self._at, count)
        self._at += count
        return count

    def readall(self) -> bytes:
        rest = bytearray(max(0, self._size - self._at))  # one request; the inherited method sends one for every 8 KB
        self.readinto(rest)
        return bytes(rest)


class _Upload(io.RawIOBase):
    """A file that goes to S3 while it is written: one part is on its way as the next one fills, two in memory.

    A file of less than one part is a single request. Parts that a killed process leaves are the storage's to clean up
    (a bucket's lifecycle rule AbortIncompleteMultipartUpload): no other process can tell them from an upload at work.
    """

    mode = "wb"

    def __init__(self, folder: RemoteFolder, name: str) -> None:
        super().__init__()
        self.name = f"{folder}/{name}"
        self._where = folder, name
        self._part = bytearray()
        self._upload: dict[str, str] = {}
        self._mark = uuid.uuid4().hex
        self._etags: list[str] = []
        self._sender = ThreadPoolExecutor(1)
        self._sending: Future[str] | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest:
            room = part_bytes(len(self._etags)) - len(self._part)
            self._part += rest[:room]
            rest = rest[room:]
            if len(self._part) >= part_bytes(len(self._etags)):
                self._send()
        return size

    def __enter__(self) -> _Upload:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException:
            self._abort()
            raise
        else:
            if kind is not None:
                self._abort()
        finally:
            self._sender.shutdown()

    def _send(self) -> None:
        if not self._upload:
            self._upload = {
                "UploadId": self._ask("create_multipart_upload", Metadata={"dilute-upload": self._mark})["UploadId"]
            }
        self._wait()
        part, self._part = self._part, bytearray()
        number = len(self._etags) + 1
        self._sending = self._sender.submit(
            lambda: self._ask("upload_part", **self._upload, PartNumber=number, Body=part)["ETag"]
        )

    def _wait(self) -> None:
        if self._sending:
            sending, self._sending = self._sending, None
            self._etags.append(sending.result())

    def _finish(self) -> None:
        if not self._upload:
            self._ask("put_object", Body=self._part)
            return
        if self._part:
            self._send()
        self._wait()
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(self._etags, 1)]
        try:
            self._ask("complete_multipart_upload", **self._upload, MultipartUpload={"Parts": parts})
        except FileNotFoundError:  # no such upload: an earlier try completed it, but its answer was lost on the way
            if not self._is_published():
                raise UserError(
                    f"cannot write {self.name}: its upload was ended by someone else; run the same command again"
                ) from None

    def _is_published(self) -> bool:
        with suppress(FileNotFoundError):
            return bool(self._ask("head_object")["Metadata"].get("dilute-upload") == self._mark)
        return False

    def _abort(self) -> None:
        self._sender.shutdown()  # a part that arrives after the abort would stay
        if self._upload:
            with suppress(UserError, FileNotFoundError):  # what went wrong before is told
                self._ask("abort_multipart_upload", **self._upload)

    def _ask(self, method: str, **arguments: Any) -> dict[str, Any]:
        folder, name = self._where

        def ask(files: Any, path: str) -> dict[str, Any]:
            bucket, key, _ = files.split_path(path)
            answer: dict[str, Any] = files.call_s3(method, Bucket=bucket, Key=key, **arguments)
            return answer

        return folder.ask("write", name, ask)


def part_bytes(num_sent: int) -> int:
    """Return the size of an upload's next part: S3 takes 10,000 of them, so those of large files grow."""
    return _PART_BYTES << num_sent // 2_000


def _whole(data: bytes, size: int, folder: Folder, name: str) -> bytes:
    if len(data) != size:
        raise DamagedImageError(f"{folder}/{name} is cut short: {size:,} bytes were asked for, {len(data):,} came")
    return data


def _not_found(folder: Folder, name: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{folder}/{name}")


def _answer(error: BaseException) -> tuple[int, str, str]:
    """Return what S3 answered, (HTTP status, code, message); without an answer what the driver says, (0, "", it)."""
    for raised in (error, error.__cause__):
        answer = getattr(raised, "response", None)
        if isinstance(answer, dict):
            status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            said = answer.get("Error", {})
            code = str(said.get("Code", ""))
            return status, code, f"{_one_line(said.get('Message', error))} ({code})"
    return 0, "", f"{_one_line(error)} ({type(error).__name__})"


def _passes(error: BaseException, status: int, code: str) -> bool:
    """Say whether an error may be gone at the next try."""
    if status:
        return status >= 500 or status in (408, 429) or code in _BAD_LUCK
    import aiohttp
    from botocore.exceptions import ConnectionError as NoConnection  # type: ignore[import-untyped]
    from botocore.exceptions import HTTPClientError, IncompleteReadError
    from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

    lost = (aiohttp.ClientError, NoConnection, HTTPClientError, IncompleteReadError, ResponseParserError)
    return isinstance(error, (ConnectionError, TimeoutError, *lost))


def _advice(error: BaseException, code: str) -> str:
    if code == "NoSuchBucket":
        return "make the bucket, or correct its name"
    if isinstance(error, PermissionError) or "credentials" in str(error):
        return "check what your credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE) allow there"
    return "check the address (and AWS_ENDPOINT_URL, if it is set) and the connection, then run the same command again"


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
