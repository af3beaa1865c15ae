"""`pika rollouts` on the nano pool, and an endpoint for it that needs no model."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

ROOT = Path(__file__).parents[2]
POOL = ROOT / "offline" / "nano_pool" / "pool.yaml"
TIMEOUT_S = 170


def command(out: Path, *options: str, splits: tuple[str, ...] = ("test=12",), k: int = 4) -> list[str]:
    split_options = [option for split in splits for option in ("--split", split)]
    return [str(POOL), "--benchmark", "running_total", *split_options, "--k", str(k), "--out", str(out), *options]


def pika(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", "rollouts", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def rows(out: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    table = pq.read_table(out)
    by_key = {(row["arm"], row["split"], row["problem_id"]): row for row in table.to_pylist()}
    assert len(by_key) == len(table), "doubled rows"
    return by_key


def check_row(row: dict[str, Any], prices: tuple[float, float], k: int) -> None:
    """A row agrees with itself."""
    lists = ("generated_solutions", "extracted_answers", "correct", "output_tokens", "truncated")
    assert [len(row[name]) for name in lists] == [k] * 5
    assert row["correct"] == [answer == row["ground_truth"] for answer in row["extracted_answers"]]
    assert row["success_rate"] == sum(row["correct"]) / k
    assert row["pass_at_k"] == float(any(row["correct"]))
    assert row["majority_vote_is_correct"] == (row["majority_vote_answer"] == row["ground_truth"])
    assert row["problem"] in row["formatted_prompt"]
    assert row["formatted_prompt"].endswith("<|im_start|>assistant\n")
    input_price, output_price = prices
    assert row["input_cost_usd_once"] == pytest.approx(row["input_tokens"] * input_price / 1e6)
    assert row["total_output_cost_usd"] == pytest.approx(sum(row["output_tokens"]) * output_price / 1e6)
    assert row["total_cost_usd"] == pytest.approx(row["input_cost_usd_once"] + row["total_output_cost_usd"])


def start(*arguments: str) -> "subprocess.Popen[str]":
    """`pika rollouts` in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "server", "rollouts", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_lines(journal: Path, lines: int, process: "subprocess.Popen[str]") -> None:
    """Until the journal has so many, or the process has ended."""
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < lines):
        time.sleep(0.002)


def journalled(journal: Path) -> list[dict[str, Any]]:
    """The samples that a run had finished."""
    return [json.loads(line) for line in journal.read_bytes().split(b"\n")[1:-1]]


def check_kept(samples: list[dict[str, Any]], found: dict[tuple[str, str, str], dict[str, Any]]) -> None:
    """What was finished before stands in the rows as it was."""
    for sample in samples:
        row = found[sample["arm"], sample["split"], sample["problem_id"]]
        assert row["generated_solutions"] == sample["solutions"]


def wait_until_gone(pid: int) -> None:
    """A process that is no zombie for long either."""
    for _ in range(1000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if ") Z " in Path(f"/proc/{pid}/stat").read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} outlived its parent")


def changed_pool(folder: Path, **changes: Any) -> Path:
    """The nano pool's configuration, but for what is changed of nano-large's model."""
    pool = yaml.safe_load(POOL.read_text())
    for model in pool["models"].values():
        model["model"] = str(POOL.parent / model["model"])
    pool["models"]["nano-large"] |= changes
    (folder / "pool.yaml").write_text(yaml.safe_dump(pool))
    return folder / "pool.yaml"


class Picky(BaseHTTPRequestHandler):
    """An endpoint that is busy at first and gives one answer per request."""

    protocol_version = "HTTP/1.1"
    requests: list[dict[str, Any]]
    busy: list[float]

    def do_GET(self) -> None:
        self._reply(404, {"error": {"message": "no list here"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self.busy:
            self.busy.append(time.monotonic())
            self._reply(429, {"error": {"message": "busy"}}, {"retry-after": "1"})
        elif "n" in body:
            self._reply(400, {"error": {"message": "n is not supported"}})
        else:
            self.requests.append(body)
            message = {"role": "assistant", "content": rf"so \boxed{{{body['seed'] % 50}}}"}
            usage = {"prompt_tokens": 30, "completion_tokens": 5, "total_tokens": 35}
            finish = "length" if body["seed"] % 2 else "stop"
            choice = {"index": 0, "message": message, "finish_reason": finish}
            self._reply(200, {"choices": [choice], "usage": usage})

    def _reply(self, code: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        payload = json.dumps(body).encode()
        self.send_response(code)
        for name, value in {**(headers or {}), "content-type": "application/json"}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def picky_server() -> Iterator[tuple[str, type[Picky]]]:
    handler = type("Handler", (Picky,), {"requests": [], "busy": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", handler
    server.shutdown()
    thread.join()
    server.server_close()
