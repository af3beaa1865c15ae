"""A pika command as a child process that does not outlive its parent, however that ends.

python -P -m offline.child PARENT COMMAND [options]
"""

import ctypes
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1


def command(argv: Sequence[str]) -> list[str]:
    """The words that run `pika ARGV` so, in any folder (with `environment`)."""
    return [sys.executable, "-P", "-m", "offline.child", str(os.getpid()), *argv]


def environment() -> dict[str, str]:
    """The present one, in which Python finds these packages from any folder."""
    path = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def die_with_parent(signal_number: int = signal.SIGKILL) -> None:
    """Ask Linux for a signal when the parent ends; nothing elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)


def main() -> None:
    parent, *argv = sys.argv[1:]
    die_with_parent()
    if os.getppid() != int(parent):  # it ended before
        sys.exit(1)
    sys.argv = ["pika", *argv]
    runpy.run_module("server", run_name="__main__")


if __name__ == "__main__":
    main()
