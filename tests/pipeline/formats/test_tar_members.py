import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.formats.tar_members import Member, members

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def listed(path: Path) -> list[Member]:
    file = os.open(path, os.O_RDONLY)
    try:
        return list(members(file, 0, path.stat().st_size, archive=str(path)))
    finally:
        os.close(file)


def write(path: Path, files: dict[str, bytes], tar_format: int = tarfile.USTAR_FORMAT) -> None:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


names = st.text(st.characters(codec="utf-8", exclude_characters="\0/."), min_size=1, max_size=20)
long_names = st.builds(lambda parts: "/".join(parts), st.lists(names, min_size=1, max_size=20))


@settings(max_examples=40)
@given(
    files=st.dictionaries(long_names, st.binary(max_size=1_500), max_size=8),
    tar_format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_it_finds_what_the_standard_library_finds(
    files: dict[str, bytes], tar_format: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    write(path, files, tar_format)
    with tarfile.open(path) as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar if member.isreg()]
    assert listed(path) == expected
    data = path.read_bytes()
    assert {name: data[offset : offset + size] for name, offset, size in listed(path)} == files


@pytest.mark.parametrize("tar_format", FORMATS)
def test_folders_are_passed_over_and_dot_slash_is_dropped(tar_format: int, tmp_path: Path) -> None:
    inside = tmp_path / "in" / ("deep" * 20)
    inside.mkdir(parents=True)
    (inside / ("name" * 20 + ".JPEG")).write_bytes(b"abc")
    with tarfile.open(tmp_path / "x.tar", "w", format=tar_format) as tar:
        tar.add(tmp_path / "in", "./in")
    assert [member.name for member in listed(tmp_path / "x.tar")] == [f"in/{'deep' * 20}/{'name' * 20}.JPEG"]


def test_an_archive_in_an_archive_is_read_where_it_lies(tmp_path: Path) -> None:
    write(tmp_path / "inner.tar", {"a": b"first", "b": b"second"})
    write(tmp_path / "outer.tar", {"x": b"before", "inner.tar": (tmp_path / "inner.tar").read_bytes()})
    inner = listed(tmp_path / "outer.tar")[1]
    file = os.open(tmp_path / "outer.tar", os.O_RDONLY)
    found = list(members(file, inner.offset, inner.size, archive="inner"))
    assert [os.pread(file, size, offset) for _, offset, size in found] == [b"first", b"second"]
    os.close(file)


@pytest.mark.parametrize("name", ["../x.JPEG", "/etc/x.JPEG", "a/../../x.JPEG", "./../x"])
def test_a_name_that_leads_out_is_refused(name: str, tmp_path: Path) -> None:
    write(tmp_path / "x.tar", {"fine": b"", name: b"abc"})
    with pytest.raises(UserError, match=r"x\.tar: member '.*' has an absolute path or one with '\.\.'"):
        listed(tmp_path / "x.tar")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(kind: bytes, tmp_path: Path) -> None:
    info = tarfile.TarInfo("x.JPEG")
    info.type, info.linkname = kind, "y.JPEG"
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(info)
    with pytest.raises(UserError, match=r"member 'x.JPEG' is no regular file .* not followed"):
        listed(tmp_path / "x.tar")


def test_every_truncation_before_the_end_mark_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "x.tar", {"a": b"x" * 700, "b": b"y" * 10})
    data = (tmp_path / "x.tar").read_bytes()
    mark = 512 + 1_024 + 512 + 512
    for cut in [*range(0, mark, 37), 512, 1_535, 1_536, 2_048, mark, mark + 511]:
        (tmp_path / "cut.tar").write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"cut\.tar: truncated"):
            listed(tmp_path / "cut.tar")
    (tmp_path / "cut.tar").write_bytes(data[: mark + 512])
    assert len(listed(tmp_path / "cut.tar")) == 2


@settings(max_examples=200)
@given(at=st.integers(0, 511), flip=st.integers(1, 255))
def test_a_damaged_header_is_refused(at: int, flip: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    write(path, {"a": b"abc"})
    data = bytearray(path.read_bytes())
    data[at] ^= flip
    path.write_bytes(data)
    try:
        found = listed(path)
    except UserError as error:
        assert str(path) in str(error)  # noqa: PT017 - a space for a NUL in the checksum's own field is harmless
    else:
        assert 148 <= at < 156
        assert [member.name for member in found] == ["a"]


@pytest.mark.parametrize("size", [b"-0000001000\0", b"0000000_010\0", b"00000000o17\0", b"0000000008 \0"])
def test_a_size_that_is_no_octal_number_is_refused(size: bytes, tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = size  # one below zero would lead back to the same header for ever
    header[148:156] = b"        "
    header[148:155] = b"%06o\0" % sum(header)
    (tmp_path / "x.tar").write_bytes(bytes(header) + bytes(2_048))
    with pytest.raises(UserError, match="damaged: no header at byte 0"):
        listed(tmp_path / "x.tar")


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"<html>" * 1_000)
    with pytest.raises(UserError, match="no tar archive, or damaged: no header at byte 0"):
        listed(tmp_path / "x.tar")


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_size_beyond_octal_is_read(tar_format: int, tmp_path: Path) -> None:
    info = tarfile.TarInfo("big")
    info.size = 10 << 30
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        header = info.tobuf(tar_format)
        file.write(header)
        file.truncate(len(header) + info.size + 1_024)  # a hole: costs no disk
    assert listed(path) == [("big", len(header), 10 << 30)]
