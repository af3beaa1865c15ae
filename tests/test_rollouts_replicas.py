"""`pika rollouts --replicas`: several processes of in-process vLLM for one model."""

import os
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest

from offline.samplers import SamplingError
from offline.vllm_engine import Share
from tests.support.processes import descendants
from tests.support.rollouts import (
    TIMEOUT_S,
    check_kept,
    check_row,
    command,
    journalled,
    pika,
    rows,
    start,
    wait_for_lines,
)


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make install")
@pytest.mark.timeout(TIMEOUT_S * 3)
def test_a_replica_that_is_killed_ends_the_run_and_nothing_is_lost(tmp_path: Path) -> None:
    out, journal = tmp_path / "out.parquet", tmp_path / "out.parquet.partial"
    splits = ("train=600",)
    arguments = command(out, "--arms", "nano-medium", "--replicas", "2", splits=splits)
    process = start(*arguments)
    wait_for_lines(journal, 20, process)
    replicas = [pid for pid in descendants(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(replicas) == 2
    os.kill(replicas[0], signal.SIGKILL)
    _, printed = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert "nano-medium ended with exit code -9" in printed
    assert "the same command goes on from there" in printed
    assert not descendants(process.pid)
    kept = journalled(journal)
    assert 20 <= len(kept) + 1 < 600

    # The number of replicas decides no sample.
    result = pika(*command(out, "--arms", "nano-medium", splits=splits))
    assert result.returncode == 0, result.stderr
    found = rows(out)
    assert len(found) == 600
    check_kept(kept, found)
    for row in found.values():
        check_row(row, (0.1, 0.4), k=4)


@pytest.mark.parametrize(
    ("things", "replicas", "shares"),
    [
        ([0, 1, 2, 3], 2, [[0, 1], [2, 3]]),
        ([4, 5, 6], 2, [[4], [5]]),
        ([7], 2, [[], []]),
        ([0, 1], 1, [[0, 1]]),
    ],
)
def test_shares_are_equal_and_do_not_overlap(things: list[int], replicas: int, shares: list[list[int]]) -> None:
    assert [Share(index, replicas).of(things) for index in range(replicas)] == shares


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed: make install")
def test_gpus_are_split_by_what_one_replica_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    from offline.vllm_engine import visible_gpus

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,4,5,7")
    assert [visible_gpus(Share(index, 2), 2) for index in range(2)] == ["2,3", "4,5"]
    assert [visible_gpus(Share(index, 5), 1) for index in range(5)] == ["2", "3", "4", "5", "7"]
    with pytest.raises(SamplingError, match="--replicas 3 of 2 GPUs each do not fit on 5"):
        visible_gpus(Share(0, 3), 2)
