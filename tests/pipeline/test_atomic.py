from pathlib import Path

import pytest

from pipeline.atomic import check_writable, replacing


def test_a_file_that_is_interrupted_while_it_is_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    path.write_bytes(b"old")

    def write_half() -> None:
        with replacing(path) as file:
            file.write(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_bytes() == b"old"
    with replacing(path) as file:  # what the first try left does not disturb the second
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_looking_whether_a_folder_can_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_writable(tmp_path)
    check_writable(tmp_path / "a" / "b")
    for folder in (tmp_path / "file", tmp_path / "file" / "x", Path("/proc/x"), tmp_path / ("x" * 300)):
        with pytest.raises(OSError, match=r"Not a directory|No such file|too long"):
            check_writable(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
