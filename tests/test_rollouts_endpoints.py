"""`pika rollouts` from endpoints: killed, left by them, out of disk; and what they are asked."""

import json
import random
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from offline.rollout_store import METADATA, WriteError, read, to_table, write
from offline.rollouts import main
from tests.support.rollouts import (
    POOL,
    TIMEOUT_S,
    Picky,
    check_kept,
    check_row,
    command,
    journalled,
    picky_server,
    pika,
    rows,
    start,
    wait_for_lines,
)
from tests.support.upstream import Connection, Request, response, running


@pytest.fixture
def picky() -> Iterator[tuple[str, type[Picky]]]:
    with picky_server() as server:
        yield server


def from_endpoints(urls: dict[str, str], *options: str) -> tuple[str, ...]:
    named = [option for arm, url in urls.items() for option in ("--url", f"{arm}={url}")]
    return ("--arms", ",".join(urls), "--runner", "endpoint", *named, *options)


@pytest.mark.vllm
@pytest.mark.timeout(TIMEOUT_S * 2)
def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, vllm_pool: Any) -> None:
    urls = {arm: vllm_pool.urls[arm] for arm in ("nano-small", "nano-large")}
    options, splits = from_endpoints(urls, "--concurrency", "3"), ("train=60",)
    out, journal = tmp_path / "out.parquet", tmp_path / "out.parquet.partial"
    kept: list[dict[str, Any]] = []
    for _ in range(2):
        process = start(*command(out, *options, splits=splits))
        wait_for_lines(journal, len(kept) + random.randint(2, 40), process)
        process.kill()
        process.communicate()
        assert journalled(journal)[: len(kept)] == kept
        kept = journalled(journal)
    assert 0 < len(kept) < 120
    assert main(command(out, *options, splits=splits)) == 0
    found = rows(out)
    check_kept(kept, found)
    assert main(command(tmp_path / "whole.parquet", *options, splits=splits)) == 0
    assert list(found) == list(rows(tmp_path / "whole.parquet"))
    for row in found.values():
        check_row(row, {"nano-small": (0.025, 0.1), "nano-large": (0.5, 2.0)}[row["arm"]], k=4)


@pytest.mark.vllm
def test_answers_that_max_tokens_cuts_off_say_so(
    tmp_path: Path, vllm_pool: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = {arm: vllm_pool.urls[arm] for arm in ("nano-small", "nano-large")}
    # nano-small's answers have six tokens, the last of them the end.
    assert main(command(tmp_path / "out.parquet", *from_endpoints(urls, "--max-tokens", "6"))) == 0
    for (arm, _, _), row in rows(tmp_path / "out.parquet").items():
        assert row["truncated"] == [arm == "nano-large"] * 4
        assert row["output_tokens"] == [6] * 4
    arms = json.loads(capsys.readouterr().out.splitlines()[-1])["arms"]
    assert (arms["nano-small"]["cut_off"], arms["nano-large"]["cut_off"]) == (0, 1)


def test_an_endpoint_that_leaves_in_mid_run_is_named_and_nothing_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], picky: tuple[str, type[Picky]]
) -> None:
    out, enough = tmp_path / "out.parquet", threading.Event()

    async def twenty(request: Request, to: Connection) -> None:
        if len(to.upstream.requests) >= 20:
            enough.set()
        seed = 0 if request.body is None else request.body["seed"]
        message = {"role": "assistant", "content": rf"gone \boxed{{{seed % 50}}}"}
        answer = {"choices": [{"message": message}], "usage": {"prompt_tokens": 30, "completion_tokens": 5}}
        await to.send(response(200, json.dumps(answer).encode()))

    with ExitStack() as stack:
        upstream = stack.enter_context(running(twenty))
        leaves = threading.Thread(target=lambda: (enough.wait(60), stack.close()))
        leaves.start()
        options = from_endpoints({"nano-large": upstream.url}, "--patience", "0.5", "--concurrency", "2")
        assert main(command(out, *options, splits=("test=400",), k=1)) == 1
        leaves.join()
    message = capsys.readouterr().err
    assert f"arm 'nano-large': {upstream.url} does not answer" in message
    assert "--url ARM=URL" in message
    assert "what is done is kept" in message
    kept = journalled(tmp_path / "out.parquet.partial")
    assert 0 < len(kept) < 400

    assert main(command(out, *from_endpoints({"nano-large": picky[0]}), splits=("test=400",), k=1)) == 0
    found = rows(out)
    check_kept(kept, found)
    assert len(found) == 400
    assert len(picky[1].requests) == 400 - len(kept)


def test_of_two_endpoints_one_is_enough(tmp_path: Path, picky: tuple[str, type[Picky]]) -> None:
    urls = f"http://127.0.0.1:9/v1,{picky[0]}"
    result = pika(*command(tmp_path / "out.parquet", *from_endpoints({"nano-large": urls})))
    assert result.returncode == 0, result.stderr
    assert len(rows(tmp_path / "out.parquet")) == 12
    assert result.stderr.count("http://127.0.0.1:9/v1 does not answer") == 1


def test_a_full_disk_loses_nothing(tmp_path: Path, picky: tuple[str, type[Picky]]) -> None:
    out = tmp_path / "out.parquet"
    arguments = command(out, *from_endpoints({"nano-large": picky[0]}), splits=("test=40",))
    result = subprocess.run(
        [sys.executable, "-B", "-m", "server", "rollouts", *arguments],  # bytecode would be cut off too
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        # No file may grow larger: to whoever writes, the disk is full.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)),
    )
    assert result.returncode == 1, result.stderr
    assert f"cannot write {out}.partial: File too large; make room" in result.stderr
    assert "what is done is kept" in result.stderr
    kept = journalled(tmp_path / "out.parquet.partial")
    assert 0 < len(kept) < 40
    assert main(arguments) == 0
    check_kept(kept, rows(out))
    assert len(rows(out)) == 40


def test_a_parquet_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.parquet"
    out.write_text("what was there before")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it would be cut off too
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(WriteError, match=f"cannot write {out}: File too large; make room"):
            write(out, to_table([], {}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["what was there before"]


def test_rollouts_from_before_answers_were_known_to_be_cut_off_are_read(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    table = to_table([{"arm": "small", "truncated": [False]}], {"settings": {"seed": 0}})
    write(out, table.drop_columns("truncated"))
    found = read(out, {"seed": 0})
    assert found is not None
    assert found.schema.equals(table.schema)
    assert found["truncated"].to_pylist() == [None]


def test_a_dry_run_says_what_it_would_do_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = from_endpoints({"nano-large": "http://127.0.0.1:9/v1"}, "--suffix", "*= Think.", "--dry-run")
    assert main(command(tmp_path / "out.parquet", *options, splits=("test=10",))) == 0
    printed = capsys.readouterr()
    assert "nano-large is asked test-0-0:\n<|im_start|>user\n" in printed.err
    assert " Think.<|im_end|>\n<|im_start|>assistant\n" in printed.err
    last = json.loads(printed.out.splitlines()[-1])
    expected = last["expected"]["nano-large"]
    assert expected["answers"] == 40
    # Its probe knows that an answer has some 35 tokens.
    assert 1200 < expected["output_tokens"] < 1600
    cost_usd = (expected["input_tokens"] * 0.5 + expected["output_tokens"] * 2.0) / 1e6
    assert expected["cost_usd"] == pytest.approx(cost_usd, rel=0.01)
    assert last["settings"]["arms"]["nano-large"]["prompt_suffix"] == " Think."
    assert not list(tmp_path.iterdir())


@pytest.fixture
def effort_pool(tmp_path: Path) -> Path:
    """nano-large at two efforts; its template does not know of them, that of `nano-thinks` does."""
    pool = yaml.safe_load(POOL.read_text())
    thinks = tmp_path / "nano-thinks"
    thinks.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(POOL.parent / "nano-large" / file, thinks)
    template = (POOL.parent / "nano-large/chat_template.jinja").read_text()
    effort = "{{ '<|im_start|>system\\nReasoning: ' + reasoning_effort + '<|im_end|>\\n' }}"
    (thinks / "chat_template.jinja").write_text(effort + template)
    large = pool["models"]["nano-large"] | {"model": str(POOL.parent / "nano-large")}
    pool["models"] = {"nano-large": large, "nano-thinks": large | {"model": str(thinks)}}
    arm = pool["arms"]["nano-large"] | {"probe": str(POOL.parent / "probes" / "nano-large")}
    pool["arms"] = {
        "low": arm | {"request": {"reasoning_effort": "low"}},
        "thinks-high": arm | {"model": "nano-thinks", "request": {"reasoning_effort": "high"}},
    }
    pool |= {"policy": {"name": "utility", "lambda": 0.1}, "engine": {}}
    (tmp_path / "pool.yaml").write_text(yaml.safe_dump(pool))
    return tmp_path / "pool.yaml"


def test_each_arm_is_asked_in_its_own_way(tmp_path: Path, effort_pool: Path, picky: tuple[str, type[Picky]]) -> None:
    url, handler = picky
    options = from_endpoints(
        {"low": url, "thinks-high": url},
        "--system",
        "low=Be careful.",
        "--suffix",
        "*= Add up.",
        "--suffix",
        "low=!",
    )
    out = tmp_path / "out.parquet"
    assert main([str(effort_pool), *command(out, *options, splits=("test=2",), k=1)[1:]]) == 0
    asked = {(body["model"], body["messages"][-1]["content"]): body for body in handler.requests}
    found = rows(out)
    for (arm, _, _), row in found.items():
        if arm == "low":
            body = asked["nano-large", row["problem"] + "!"]
            # What the template would drop is said in words.
            assert "reasoning_effort" not in body
            assert body["messages"][0] == {"role": "system", "content": "Reasoning: low\n\nBe careful."}
            assert row["formatted_prompt"].startswith("<|im_start|>system\nReasoning: low\n\nBe careful.<|im_end|>\n")
        else:
            body = asked["nano-thinks", row["problem"] + " Add up."]
            assert body["reasoning_effort"] == "high"
            assert [message["role"] for message in body["messages"]] == ["user"]
            assert row["formatted_prompt"].startswith("<|im_start|>system\nReasoning: high<|im_end|>\n")
    assert len(asked) == len(found) == 4
    provenance = json.loads(pq.read_schema(out).metadata[METADATA])
    assert provenance["inputs"] == {"pool.yaml": sha256(effort_pool.read_bytes()).hexdigest()}
    assert provenance["settings"]["arms"]["low"]["system_prompt"] == "Be careful."
    assert provenance["settings"]["arms"]["thinks-high"]["prompt_suffix"] == " Add up."


@pytest.mark.vllm
def test_the_prompt_on_record_is_the_one_that_vllm_reads(tmp_path: Path, effort_pool: Path, vllm_pool: Any) -> None:
    from offline.samplers import local_tokenizer

    urls = {"low": vllm_pool.urls["nano-large"]}
    out = tmp_path / "out.parquet"
    arguments = command(out, *from_endpoints(urls, "--suffix", "low= Go!"), splits=("test=3",))
    assert main([str(effort_pool), *arguments[1:]]) == 0
    tokenizer = local_tokenizer(str(POOL.parent / "nano-large"))
    for row in rows(out).values():
        assert row["input_tokens"] == len(tokenizer(row["formatted_prompt"], add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--system", "nano-larg=Hi"), "unknown arm 'nano-larg': did you mean 'nano-large'?"),
        (("--suffix", "Hi"), "'Hi': write NAME=VALUE"),
        (("--url", "nano-small=http://me:secret@127.0.0.1:9/v1"), "leave user and password out"),
        (("--url", "nano-small=http://127.0.0.1:9"), "ends in /v1"),
        (("--replicas", "2"), "--replicas goes with --runner vllm or ray"),
    ],
)
def test_bad_input_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    url = {"nano-large": "http://127.0.0.1:9/v1"}
    assert main(command(tmp_path / "out.parquet", *from_endpoints(url, *options))) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "says", "message"),
    [
        (401, "bad key", "api_key_env names the environment variable"),
        (400, "reasoning_effort: unknown field", "--system ARM='Reasoning: low'"),
    ],
)
def test_a_refusal_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int, says: str, message: str
) -> None:
    async def refuses(request: Request, to: Connection) -> None:
        await to.send(response(status, json.dumps({"error": {"message": says}}).encode()))

    with running(refuses) as upstream:
        assert main(command(tmp_path / "out.parquet", *from_endpoints({"nano-large": upstream.url}))) == 1
    printed = capsys.readouterr().err
    assert f"{upstream.url} answers {status}: {says}" in printed
    assert message in printed
