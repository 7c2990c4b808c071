"""Put a tool into the project's own environment, whether or not one is activated."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv" / "bin" / "python"
HELD = "DILUTE_INTERRUPTS_HELD"


def enter(*, set_up: bool = False) -> None:
    """Restart the calling script with `.venv`'s Python, unless it already runs there.

    Ctrl-C while the script then imports its libraries, which takes a second, ends it at once and quietly;
    `pipeline.console.run` makes it an exception again.

    Args:
        set_up: Run tools/setup first (a second run of it takes a second).
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have it ignored
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    if os.environ.pop(HELD, None):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ["PATH"] = f"{PYTHON.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if set_up and os.environ.get("DILUTE_ENTERED") != str(ROOT):
        code = subprocess.run([str(ROOT / "tools" / "setup")]).returncode
        if code:
            sys.exit(code)
    os.environ["DILUTE_ENTERED"] = str(ROOT)
    if Path(sys.prefix) == PYTHON.parent.parent:
        return
    if PYTHON.exists():
        os.environ[HELD] = "1"
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the new interpreter is here again
        os.execv(PYTHON, [str(PYTHON), *sys.argv])
    print("error: there is no .venv here yet; run tools/setup first", file=sys.stderr)
    sys.exit(2)
