from pathlib import Path

import pytest

from pipeline.atomic import replacing


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
