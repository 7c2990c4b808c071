"""How every tool starts."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ["bench", "build_shards", "compare", "fetch", "inspect_run", "inspect_shards", "report", "reproduce"]


def interrupted(tool: str, *, ignored: bool = False) -> tuple[int, str, str]:
    """Send a tool Ctrl-C while it imports its libraries; return its exit code and what it printed."""
    process = subprocess.Popen(
        [ROOT / "tools" / tool, "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignored else None,
    )
    maps, deadline = Path(f"/proc/{process.pid}/maps"), time.monotonic() + 60
    while "_multiarray_umath" not in maps.read_text():  # NumPy: one of the first
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize("tool", [*TOOLS, "verify_shards"])
def test_a_tool_that_is_interrupted_while_it_imports_ends_quietly(tool: str) -> None:
    assert interrupted(tool) == (130, "", "")


def test_an_interrupt_that_a_shell_has_ignored_stays_ignored() -> None:
    code, out, err = interrupted("fetch", ignored=True)
    assert (code, err) == (0, "")
    assert "synthetic-imagenet" in out
