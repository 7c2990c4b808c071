"""Put a tool into the project's own environment, whether or not one is activated."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv" / "bin" / "python"


def enter(*, set_up: bool = False) -> None:
    """Restart the calling script with `.venv`'s Python, unless it already runs there.

    Args:
        set_up: Run tools/setup first (a second run of it takes a second).
    """
    os.environ["PATH"] = f"{PYTHON.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if set_up and os.environ.get("DILUTE_ENTERED") != str(ROOT):
        code = subprocess.run([str(ROOT / "tools" / "setup")]).returncode
        if code:
            sys.exit(code)
    os.environ["DILUTE_ENTERED"] = str(ROOT)
    if Path(sys.prefix) == PYTHON.parent.parent:
        return
    if PYTHON.exists():
        os.execv(PYTHON, [str(PYTHON), *sys.argv])
    print("error: there is no .venv here yet; run tools/setup first", file=sys.stderr)
    sys.exit(2)
