"""A pika command as a child process that does not outlive its parent, however that ends.

python -P -m offline.child PARENT COMMAND [options]
"""

import os
import runpy
import select
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path


def command(argv: Sequence[str]) -> list[str]:
    """The words that run `pika ARGV` so, in any folder (with `environment`)."""
    return [sys.executable, "-P", "-m", "offline.child", str(os.getpid()), *argv]


def environment() -> dict[str, str]:
    """The present one, in which Python finds these packages from any folder."""
    path = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def end_with(pid: int) -> None:
    """Have this process killed as soon as another one has ended; where there is no Linux, nothing."""
    if sys.platform != "linux":
        return
    try:
        other = os.pidfd_open(pid)
    except ProcessLookupError:  # it has already
        os.kill(os.getpid(), signal.SIGKILL)
        return

    def watch() -> None:
        select.select([other], [], [])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    parent, *argv = sys.argv[1:]
    end_with(int(parent))
    sys.argv = ["pika", *argv]
    runpy.run_module("server", run_name="__main__")


if __name__ == "__main__":
    main()
