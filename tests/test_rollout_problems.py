"""`pika rollouts --benchmark`: problems of data sets, from where they are read to the rows that hold them."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import probes.hub
from offline.rollout_dataset import read_rollouts
from offline.rollout_store import METADATA
from offline.rollouts import main
from tests.support.benchmark_repos import own, write
from tests.support.hub import Fault, Hub, reset, running, status

ROOT = Path(__file__).parents[1]
POOL = ROOT / "offline" / "nano_pool" / "pool.yaml"


class Adds1500(BaseHTTPRequestHandler):
    """An endpoint that solves the made-up GSM8K, even numbers alone."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._reply(404, {"error": {"message": "no list here"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        found = re.search(r"Kim has (\d+) pens", body["messages"][-1]["content"])
        number = int(found[1]) if found else 0
        choices = [
            {"index": i, "message": {"role": "assistant", "content": rf"\boxed{{{number + 1500 + number % 2}}}"}}
            for i in range(body.get("n", 1))
        ]
        usage = {"prompt_tokens": 30, "completion_tokens": 5 * len(choices), "total_tokens": 35}
        self._reply(200, {"choices": choices, "usage": usage})

    def _reply(self, code: int, body: dict[str, Any]) -> None:
        payload = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Adds1500)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def command(out: Path, url: str, *options: str) -> list[str]:
    endpoint = ("--arms", "nano-large", "--runner", "endpoint", "--url", f"nano-large={url}", "--max-tokens", "9")
    return [str(POOL), *endpoint, "--k", "2", "--out", str(out), *options]


def test_a_data_set_is_sampled_whole_and_again_only_while_it_is_the_same(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, folder = tmp_path / "out.parquet", Path(str(write("gsm8k", tmp_path).dataset))
    splits = ("--split", "train=all", "--split", "validation=2", "--split", "test=all")
    arguments = command(out, url, "--benchmark", "gsm8k", "--dataset", str(folder), *splits)
    assert main(arguments) == 0
    rows = pq.read_table(out).to_pylist()
    for row in rows:
        number = int(row["problem"].split()[2])
        assert row["ground_truth"] == f"{number + 1500:,}"
        assert row["correct"] == [number % 2 == 0] * 2
        assert row["metadata"] is None
    settings = json.loads(pq.read_schema(out).metadata[METADATA])["settings"]
    assert settings["splits"]["test"] == 12
    assert settings["splits"]["validation"] == 2
    assert settings["data"]["dataset"] == str(folder)
    assert len(settings["data"]["sha256"]) == 64

    assert main(arguments) == 0
    assert "complete already" in capsys.readouterr().err
    test = folder / "main" / "test-00000-of-00001.parquet"
    table = pq.read_table(test)
    pq.write_table(table.slice(0, 11), test)
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "data.sha256: " in message
    assert "splits.test: 12 there, 11 asked" in message


def test_rows_carry_what_is_known_of_their_problems(tmp_path: Path, url: str) -> None:
    out, source = tmp_path / "out.parquet", write("e2h_amc", tmp_path)
    options = ("--benchmark", "e2h_amc", "--dataset", str(source.dataset), "--split", "test=5")
    assert main(command(out, url, *options)) == 0
    table = read_rollouts(out)
    assert table.column_names[-1] == "metadata"
    for text in table["metadata"].to_pylist():
        known = json.loads(text)
        assert known["human_difficulty"] == known["index"] / 100

    older = tmp_path / "older.parquet"
    pq.write_table(table.drop_columns(["metadata"]), older)
    assert read_rollouts(older).num_rows == 5


def test_a_file_is_sampled_with_the_verifier_that_is_named(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps({**row, "answer": 1500 + row["answer"] % 4}) + "\n" for row in own(30)))
    options = ["--benchmark", "file", "--dataset", str(file), "--split", "test=all"]
    assert main(command(tmp_path / "out.parquet", url, *options)) == 2
    assert "needs --verifier NAME, --question-column NAME, --answer-column NAME" in capsys.readouterr().err
    options += ["--verifier", "numeric", "--question-column", "question", "--answer-column", "answer"]
    assert main(command(tmp_path / "out.parquet", url, *options)) == 0
    for row in pq.read_table(tmp_path / "out.parquet").to_pylist():
        assert row["success_rate"] == float(row["ground_truth"] == "1500")
        assert json.loads(row["metadata"])["topic"] == "sums"
    options[options.index("numeric")] = "exact"
    assert main(command(tmp_path / "out.parquet", url, *options)) == 2
    assert "data.verifier: numeric there, exact asked" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--benchmark", "gsm9k", "--split", "test=1"], "unknown benchmark 'gsm9k': did you mean 'gsm8k'?"),
        (["--benchmark", "running_total", "--split", "test=all"], "makes problems without end: say how many"),
        (["--benchmark", "running_total", "--split", "test=0"], "a positive number of problems or `all`"),
        (["--benchmark", "running_total", "--split", "test=\u0663"], "a positive number of problems or `all`"),
        (["--benchmark", "gsm8k", "--dataset", "nowhere", "--split", "test=1"], "neither a folder nor the owner/name"),
    ],
)
def test_bad_input_is_named(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(command(tmp_path / "out.parquet", url, *options)) == 2
    assert message in capsys.readouterr().err


# From the Hub.


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """One with ann/gsm8k, which this process uses."""
    import datasets

    folder = Path(str(write("gsm8k", tmp_path).dataset))
    files: dict[str, bytes | None] = {
        str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }
    monkeypatch.setattr(probes.hub, "WAITS_S", (0.0, 0.0))
    with running() as there:
        there.use(monkeypatch, tmp_path / "home")
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", there.url)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "home" / "datasets"))
        there.repository("ann/gsm8k", "dataset").commit(files)
        yield there


FROM_HUB = ("--benchmark", "gsm8k", "--dataset", "ann/gsm8k", "--split", "test=all")


def test_a_data_set_of_the_hub_is_read_at_one_commit_and_kept(
    tmp_path: Path, url: str, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(tmp_path / "out.parquet", url, *FROM_HUB)
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1])["rows"] == 12
    assert "Generating" not in printed.err  # the bars of `datasets`, where nobody looks
    assert not hub.asked("socratic-")
    # Without the Hub, in a process of its own: its libraries read their environment once.
    offline = subprocess.run(
        [sys.executable, "-m", "server", "rollouts", *arguments],
        env={
            **os.environ,
            **hub.environment(tmp_path / "home"),
            "HF_HUB_OFFLINE": "1",
            "HF_ENDPOINT": "http://127.0.0.1:9",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert offline.returncode == 0, offline.stderr
    assert "complete already" in offline.stderr


REFUSALS: dict[str, tuple[str, Fault, int, str]] = {
    "gated": ("/api/datasets", status(403, x_error_code="GatedRepo"), 2, "ann/gsm8k is gated.*`hf auth login`"),
    "files gated": ("HEAD .*parquet", status(403, x_error_code="GatedRepo"), 2, "ann/gsm8k is gated.*`hf auth login`"),
    "not logged in": ("/api/datasets", status(401), 2, "shows no repository ann/gsm8k.*`hf auth login`"),
    "trouble": ("/api/datasets", status(503), 1, "the Hub is away.*--dataset FOLDER.*HF_HUB_OFFLINE=1"),
    "trouble later": ("GET /large", status(500), 1, "the Hub is away.*--dataset FOLDER"),
    "reset": ("GET /large", reset, 1, "the Hub is away.*--dataset FOLDER"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_hub_that_refuses_or_is_away_is_named_with_the_fix(
    what: str, tmp_path: Path, url: str, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern, fault, code, message = REFUSALS[what]
    hub.fails(pattern, fault)
    arguments = command(tmp_path / "out.parquet", url, *FROM_HUB)
    assert main(arguments) == code
    assert re.search(message, capsys.readouterr().err)
    if code == 1:  # the same command goes on
        hub.works()
        assert main(arguments) == 0


def test_a_revision_that_is_not_there_is_named(
    tmp_path: Path, url: str, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path / "out.parquet", url, *FROM_HUB, "--revision", "nope")) == 2
    assert "ann/gsm8k has no revision 'nope'" in capsys.readouterr().err
