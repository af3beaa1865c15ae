"""`pika rollouts --runner ray`, on a local Ray cluster, from real vLLM servers."""

import json
import os
import random
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from offline.rollouts import main
from tests.support.rollouts import (
    TIMEOUT_S,
    check_kept,
    check_row,
    command,
    journalled,
    rows,
    start,
    wait_for_lines,
)
from tests.support.upstream import fails_with, running

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'pika-router[ray]'"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),  # of its own settings
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray: Any = import_module("ray")
    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, logging_level="ERROR")
    yield
    ray.shutdown()


def options(urls: dict[str, str], runner: str, *more: str) -> tuple[str, ...]:
    named = [option for arm, url in urls.items() for option in ("--url", f"{arm}={url}")]
    return ("--arms", ",".join(urls), "--runner", runner, *named, *more)


@pytest.mark.vllm
@pytest.mark.timeout(TIMEOUT_S * 2)
def test_ray_gives_what_the_endpoint_runner_gives(tmp_path: Path, vllm_pool: Any, cluster: None) -> None:
    urls = {arm: vllm_pool.urls[arm] for arm in ("nano-small", "nano-medium")}
    splits = ("train=60", "validation=20")
    found = {}
    for runner in ("endpoint", "ray"):
        more = ("--replicas", "2", "--concurrency", "8") if runner == "ray" else ()
        assert main(command(tmp_path / runner, *options(urls, runner, *more), splits=splits)) == 0
        found[runner] = rows(tmp_path / runner)
    ours, theirs = found["ray"], found["endpoint"]
    assert list(ours) == list(theirs)
    same = 0
    for key, row in ours.items():
        check_row(row, {"nano-small": (0.025, 0.1), "nano-medium": (0.1, 0.4)}[key[0]], k=4)
        assert list(row) == list(theirs[key])
        assert row["formatted_prompt"] == theirs[key]["formatted_prompt"]
        assert row["input_tokens"] == theirs[key]["input_tokens"]
        same += row["generated_solutions"] == theirs[key]["generated_solutions"]
    # Seeds are the same; rounding in other batches may turn a close draw.
    assert same > 0.95 * len(ours)


@pytest.mark.vllm
@pytest.mark.timeout(TIMEOUT_S * 3)
def test_a_killed_run_on_ray_goes_on_where_it_stopped(
    tmp_path: Path, vllm_pool: Any, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out, journal = tmp_path / "out.parquet", tmp_path / "out.parquet.partial"
    urls = {"nano-large": vllm_pool.urls["nano-large"]}
    arguments = command(out, *options(urls, "ray", "--concurrency", "2"), splits=("train=120",))
    process = start(*arguments)
    wait_for_lines(journal, random.randint(2, 60), process)
    process.kill()
    process.communicate()
    kept = journalled(journal)
    assert main(arguments) == 0
    assert 0 < len(kept) < 120
    check_kept(kept, rows(out))
    assert len(rows(out)) == 120
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == 120


def test_an_endpoint_that_fails_is_named_by_ray_too(
    tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(fails_with(403)) as upstream:
        urls = {"nano-large": upstream.url}
        assert main(command(tmp_path / "out.parquet", *options(urls, "ray"))) == 1
    message = capsys.readouterr().err
    assert f"arm 'nano-large', problem test-0-0: {upstream.url} answers 403: no" in message
    assert "Traceback" not in message


def test_an_arm_without_an_endpoint_needs_a_cluster_with_gpus(
    tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path / "out.parquet", "--arms", "nano-small", "--runner", "ray")) == 1
    message = capsys.readouterr().err
    assert "arm 'nano-small' has no url" in message
    assert "'pika-router[ray,vllm]'" in message
