"""Connections spread evenly over workers, and no worker waits for another."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from server.workers.acceptor import AWAY, Counts
from tests.support import upstream as faults
from tests.support.gateway import write_pool
from tests.support.processes import descendants, until
from tests.support.serve import Served, served

WORKERS = 3
ASK = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with faults.running(faults.answers) as upstream:
        file = write_pool(tmp_path_factory.mktemp("pool"), {"small": [upstream.url]})
        with served(file, None, "--workers", str(WORKERS)) as gateway:
            yield gateway


def spread(gateway: Served) -> dict[int, int]:
    """How many of the port's connections each worker has."""
    port = gateway.client.base_url.port
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {f"socket:[{line[9]}]" for line in lines if int(line[1].split(":")[1], 16) == port and line[3] == "01"}
    found = {}
    for pid in descendants(gateway.process.pid):
        with suppress(OSError):  # it has just ended
            if b"server.workers.worker" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                open_files = [str(one.readlink()) for one in Path(f"/proc/{pid}/fd").iterdir() if one.is_symlink()]
                found[pid] = sum(one in inodes for one in open_files)
    return found


def connect(gateway: Served) -> socket.socket:
    return socket.create_connection((gateway.client.base_url.host, gateway.client.base_url.port or 0), timeout=10)


def opened(gateway: Served, stack: ExitStack, count: int) -> None:
    """Connections that all have been answered."""
    some = [stack.enter_context(connect(gateway)) for _ in range(count)]
    for one in some:
        one.sendall(ASK)
    for one in some:
        assert one.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_workers_see_each_others_counts(tmp_path: Path) -> None:
    one, other = Counts(tmp_path, 3), Counts(tmp_path, 3)
    assert one.least(0) == AWAY, "who has not begun accepts nothing"
    one.tell(0, 5)
    other.tell(1, 3)
    assert (one.least(0), other.least(1), other.least(2)) == (3, 5, 3)
    assert Counts(tmp_path, 3).least(2) == 3, "a successor finds them as they are"


@pytest.mark.parametrize("count", [6, 9, 60])
def test_kept_connections_spread_evenly(gateway: Served, count: int) -> None:
    until(lambda: sum(spread(gateway).values()) == 0, 10, "no connection is open")
    with ExitStack() as stack:
        opened(gateway, stack, count)
        each = sorted(spread(gateway).values())
    assert sum(each) == count
    assert each[-1] - each[0] <= max(2, count // 5), each


def test_a_worker_that_hangs_or_dies_keeps_nobody_waiting(gateway: Served) -> None:
    victim = min(spread(gateway))
    os.kill(victim, signal.SIGSTOP)
    try:
        with ExitStack() as stack:
            opened(gateway, stack, 20)
            assert spread(gateway)[victim] == 0
    finally:
        os.kill(victim, signal.SIGKILL)
    with ExitStack() as stack:
        opened(gateway, stack, 20)

    def all_take_part() -> bool:
        with ExitStack() as stack:
            opened(gateway, stack, 12)
            each = spread(gateway)
        return victim not in each and len(each) == WORKERS and min(each.values()) >= 2

    until(all_take_part, 30, "another takes its place")
