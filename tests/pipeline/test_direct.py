import errno
import fcntl
import os
import resource
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.direct import DirectFile

BUFFER = 4 << 20
SIZES = st.lists(
    st.one_of(st.integers(0, 9_000), st.sampled_from([4_096, BUFFER - 1, BUFFER, BUFFER + 1, 2 * BUFFER])), max_size=6
)


@given(sizes=SIZES, flushed=st.sets(st.integers(0, 5)))
def test_a_direct_file_holds_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], flushed: set[int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "direct"
    data = os.urandom(sum(sizes))
    with DirectFile(path) as file:
        for number, (end, size) in enumerate(zip(accumulate(sizes), sizes, strict=True)):
            assert file.write(data[end - size : end]) == size
            if number in flushed:
                file.flush()
                assert path.stat().st_size == end
    assert path.read_bytes() == data


def test_whole_buffers_go_past_the_page_cache_and_a_disk_that_refuses_is_written_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct: list[bool] = []
    write = os.write

    def refusing(descriptor: int, data: memoryview) -> int:
        direct.append(bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT))
        if direct == [True]:
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(descriptor, data)

    data = os.urandom(2 * BUFFER + 5)
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.direct.os.write", refusing)
        with DirectFile(tmp_path / "direct") as file:
            file.write(data)
    assert direct == [True, False, True, False]  # refused, written, the second buffer, the end
    assert (tmp_path / "direct").read_bytes() == data


def test_a_disk_that_fills_up_is_an_error_and_closing_does_not_write_again(tmp_path: Path) -> None:
    program = f"""
import os, sys
from pathlib import Path
from pipeline.direct import DirectFile
file = DirectFile(Path(sys.argv[1]))
descriptor = file.fileno()
try:
    file.write(bytes({BUFFER} + 10))
    file.close()
except OSError as error:
    print(error.errno)
assert file.closed
other = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
assert other == descriptor, (other, descriptor)
del file
"""
    limit = BUFFER + 4
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "full"), str(tmp_path / "other")],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.stdout == f"{errno.EFBIG}\n", done.stderr
    assert (tmp_path / "other").read_bytes() == b""
