"""`pika label` and `pika probes convert`, run as a user runs them."""

import csv
import json
import logging
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pyarrow.parquet as pq
import pytest

from offline import convert, label_command
from offline.provenance import noted, sha256
from probes import calibration
from probes.engine.base import Prompt
from probes.engine.local import LocalEngine
from probes.prompt import Renderer
from probes.reference import load_probe
from tests.support.legacy import legacy_folder
from tests.support.probes import NANO_POOL, artifact

GOLDEN = Path(__file__).parents[2] / "shared/data/golden"
SMALL = str(NANO_POOL / "nano-small")
PROBLEMS = [
    {"idx": i, "question": f"Find the final number. Take {i + 3}. Add 4. Subtract {i}.", "split": split}
    for i, split in enumerate(["train", "val", "val", "test", "val"])
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps(problem) + "\n" for problem in PROBLEMS))
    return file


def label(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """The summary of a run that must succeed."""
    code = label_command.main([*map(str, arguments), "--device", "cpu"])
    output = capsys.readouterr()
    assert code == 0, output.err
    summary: dict[str, Any] = json.loads(output.out.splitlines()[-1])
    return summary


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a run ends with that must not succeed."""
    assert label_command.main([*map(str, arguments), "--device", "cpu"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    last: str = output.err.splitlines()[-1]
    assert last.startswith("pika label: ")
    return last


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def expected(folder: Path, texts: list[str], probe_model: str | None = None) -> tuple[Any, Any]:
    """Raw outputs and success probabilities, by way of the engine."""
    loaded = load_probe(folder, probe_model=probe_model)
    assert loaded.pass_ is not None
    renderer = Renderer(loaded.pass_)
    prompts = [Prompt((renderer.render([{"role": "user", "content": text}]).token_ids,), text) for text in texts]
    raw = LocalEngine([loaded], "cpu").raw(prompts)[:, 0]
    return raw, calibration.apply(loaded.card.calibration, raw)


def test_labels_come_in_order_and_from_the_probe(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact(tmp_path / "probe")
    out = tmp_path / "labels.jsonl"
    summary = label(capsys, "--probe", tmp_path / "probe", "--data", data, "--out", out)
    rows = read_lines(out)
    assert [list(row) for row in rows] == [["idx", "split", "success_probability", "raw", "difficulty"]] * 5
    assert [(row["idx"], row["split"]) for row in rows] == [(p["idx"], p["split"]) for p in PROBLEMS]
    raw, success = expected(tmp_path / "probe", [str(p["question"]) for p in PROBLEMS])
    np.testing.assert_allclose([row["raw"] for row in rows], raw, rtol=1e-5)
    np.testing.assert_allclose([row["success_probability"] for row in rows], success, rtol=1e-5)
    np.testing.assert_allclose([row["difficulty"] for row in rows], 1 - success, rtol=1e-5)
    assert (summary["problems"], summary["prompts"], summary["calibrated_to"]) == (5, "problem", "success")
    assert summary["mean_success_probability"] == pytest.approx(success.mean())


@pytest.mark.parametrize("suffix", [".parquet", ".json", ".csv"])
def test_the_suffix_of_out_is_the_format(
    tmp_path: Path, data: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact(tmp_path / "probe")
    common = ("--probe", tmp_path / "probe", "--data", data, "--split", "validation")
    label(capsys, *common, "--out", tmp_path / "labels.jsonl")
    file = tmp_path / f"labels{suffix}"
    label(capsys, *common, "--out", file)
    match suffix:
        case ".parquet":
            rows = pq.read_table(file).to_pylist()
        case ".json":
            rows = json.loads(file.read_text())
        case _:
            with file.open(newline="") as lines:
                rows = [
                    {name: int(value) if name == "idx" else float(value) for name, value in row.items()}
                    for row in csv.DictReader(lines)
                ]
    assert rows == read_lines(tmp_path / "labels.jsonl")
    assert [row["idx"] for row in rows] == [1, 2, 4]
    assert "split" not in rows[0]
    beside = tmp_path / f"labels{suffix}.provenance.json"
    told = json.loads(beside.read_text()) if beside.exists() else noted(pq.read_schema(file).metadata)
    assert told["inputs"] == {"problems.jsonl": sha256(data)}
    assert (told["probe"], told["command"].split()[:2]) == (str(tmp_path / "probe"), ["pika", "label"])


def test_regression_is_clipped_and_its_raw_output_kept(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = legacy_folder(tmp_path / "legacy", "regression")
    model = joblib.load(folder / "best_probe.joblib")
    model.coef_ *= 50
    joblib.dump(model, folder / "best_probe.joblib")
    label(capsys, "--probe", folder, "--probe-model", SMALL, "--data", data, "--out", tmp_path / "labels.jsonl")
    rows = read_lines(tmp_path / "labels.jsonl")
    raw, _ = expected(folder, [str(p["question"]) for p in PROBLEMS], SMALL)
    np.testing.assert_allclose([row["raw"] for row in rows], raw, rtol=1e-5)
    assert [row["success_probability"] for row in rows] == [min(max(row["raw"], 0), 1) for row in rows]
    assert any(not 0 <= row["raw"] <= 1 for row in rows)


def test_a_formatted_prompt_is_the_prompt(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As it stands, where it is of the probe model's template; the question is then not looked at."""
    artifact(tmp_path / "probe")
    common = ("--probe", tmp_path / "probe", "--data", data)
    label(capsys, *common, "--out", tmp_path / "plain.jsonl")
    turns = [f"<|im_start|>user\n{p['question']}<|im_end|>\n<|im_start|>assistant\n" for p in PROBLEMS]
    rows = [{"idx": p["idx"], "formatted_prompt": turn} for p, turn in zip(PROBLEMS, turns, strict=True)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = label(capsys, *common, "--out", tmp_path / "formatted.jsonl")
    assert summary["prompts"] == "formatted_prompt"
    plain, formatted = read_lines(tmp_path / "plain.jsonl"), read_lines(tmp_path / "formatted.jsonl")
    assert [row["raw"] for row in formatted] == [row["raw"] for row in plain]


def test_a_prompt_of_another_model_is_rendered_anew(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact(tmp_path / "probe")
    common = ("--probe", tmp_path / "probe", "--data", data)
    label(capsys, *common, "--out", tmp_path / "plain.jsonl")
    foreign = [{**p, "formatted_prompt": f"<|start|>user<|message|>{p['question']}<|end|>"} for p in PROBLEMS]
    data.write_text("".join(json.dumps(row) + "\n" for row in foreign))
    assert label(capsys, *common, "--out", tmp_path / "foreign.jsonl")["prompts"] == "problem"
    assert (tmp_path / "foreign.jsonl").read_text() == (tmp_path / "plain.jsonl").read_text()
    data.write_text(json.dumps({"idx": 1, "formatted_prompt": foreign[0]["formatted_prompt"]}) + "\n")
    message = refusal(capsys, *common, "--out", tmp_path / "none.jsonl")
    assert "does not end as" in message
    assert "add problem" in message


def test_long_formatted_prompts_keep_their_end(tmp_path: Path) -> None:
    loaded = artifact(tmp_path / "probe")
    assert loaded.pass_ is not None
    renderer = Renderer(loaded.pass_)
    question = "Add 4. " * 2000
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert renderer.accept(text) == renderer.render([{"role": "user", "content": question}])
    assert renderer.accept(text).flags == ("truncated",)


def test_wrong_input_is_named_in_one_line(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact(tmp_path / "probe")
    probe, out = ("--probe", tmp_path / "probe"), ("--out", tmp_path / "labels.jsonl")
    assert "no probe folder at" in refusal(capsys, "--probe", tmp_path / "none", "--data", data, *out)
    assert "must end in" in refusal(capsys, *probe, "--data", data, "--out", tmp_path / "labels.xlsx")
    assert "there is no folder" in refusal(capsys, *probe, "--data", data, "--out", tmp_path / "deep/labels.csv")
    assert "would replace the problems" in refusal(capsys, *probe, "--data", data, "--out", data)
    assert "cannot read" in refusal(capsys, *probe, "--data", tmp_path / "none.csv", *out)
    assert "has no split 'dev'" in refusal(capsys, *probe, "--data", data, "--split", "dev", *out)
    assert "no folder at" in refusal(capsys, *probe, "--probe-model", "./nowhere", "--data", data, *out)
    lists = tmp_path / "lists.jsonl"
    lists.write_text(json.dumps({"idx": 0, "question": "Take 3.", "split": ["train", "test"]}))
    assert "split of row 1 is ['train', 'test']: name one" in refusal(capsys, *probe, "--data", lists, *out)
    assert not (tmp_path / "labels.jsonl").exists()


def test_a_mismatch_must_be_allowed_by_name(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact(tmp_path / "probe")
    config = json.loads((tmp_path / "probe/config.json").read_text())
    (tmp_path / "probe/config.json").write_text(json.dumps(config | {"canary_token_ids": [1, 2, 3]}))
    arguments = ("--probe", tmp_path / "probe", "--data", data, "--out", tmp_path / "labels.jsonl")
    assert "--allow-mismatch tokenizer" in refusal(capsys, *arguments)
    assert label(capsys, *arguments, "--allow-mismatch", "tokenizer")["mismatches"] == ["tokenizer"]


def test_what_cannot_be_written_is_a_failure(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact(tmp_path / "probe")
    out = tmp_path / "labels.csv"
    out.mkdir()
    assert label_command.main(["--probe", str(tmp_path / "probe"), "--data", str(data), "--out", str(out)]) == 1
    assert "cannot write" in capsys.readouterr().err
    assert not list(tmp_path.glob(".labels.csv*"))


@pytest.mark.skipif(not GOLDEN.exists(), reason="the research code's results are not part of the repository")
@pytest.mark.parametrize("name", ["success_rate", "majority_vote_is_correct"])
def test_labels_are_the_research_codes(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    [folder] = GOLDEN.glob(f"*--{name}--*")
    common = ("--data", GOLDEN / "dataset.parquet", "--split", "test", "--probe-model", GOLDEN / "model")
    label(capsys, "--probe", folder, *common, "--out", tmp_path / "labels.parquet")
    labels = pq.read_table(tmp_path / "labels.parquet").to_pydict()
    dataset = pq.read_table(GOLDEN / "dataset.parquet").to_pandas()
    assert labels["idx"] == dataset["idx"][dataset["split"] == "test"].tolist()
    predictions = json.loads((GOLDEN / "predictions.json").read_text())[name]["predictions"]
    column = "raw" if name == "success_rate" else "success_probability"
    np.testing.assert_allclose(labels[column], predictions, atol=1e-4)
    np.testing.assert_allclose(labels["success_probability"], np.clip(predictions, 0, 1), atol=1e-4)


# Converting.


def converted(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code = convert.main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    assert code == 0, output.err
    summary: dict[str, Any] = json.loads(output.out.splitlines()[-1])
    return summary


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_converted_probe_predicts_the_same_and_knows_its_model(
    tmp_path: Path, data: Path, task: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = legacy_folder(tmp_path / "legacy", task)
    out = tmp_path / "ours"
    summary = converted(capsys, folder, "--probe-model", SMALL, "--out", out)
    assert summary["checked"]
    assert sorted(file.name for file in out.iterdir()) == ["config.json", "probe.safetensors"]
    common = ("--data", data, "--out", tmp_path / "labels.jsonl")
    label(capsys, "--probe", folder, "--probe-model", SMALL, *common)
    before = (tmp_path / "labels.jsonl").read_text()
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        assert label(capsys, "--probe", out, *common)["revision"] == summary["revision"]
    assert caplog.text == ""
    assert (tmp_path / "labels.jsonl").read_text() == before
    card = load_probe(out).card
    assert card.pass_ is not None
    assert card.pass_.recipe.chat_template_sha256 is not None
    assert card.probe_model_fingerprint is not None
    message = refusal(capsys, "--probe", out, "--probe-model", NANO_POOL / "nano-medium", *common)
    assert "--allow-mismatch probe-model" in message


def test_without_the_probe_model_nothing_is_made_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing is fetched: the model is on no Hub."""
    folder = legacy_folder(tmp_path / "legacy")
    assert convert.main([str(folder), "--out", str(tmp_path / "ours")]) == 0
    output = capsys.readouterr()
    assert "nothing of acme/nano-small is recorded" in output.err
    assert not json.loads(output.out)["checked"]
    card = load_probe(tmp_path / "ours", verify=False).card
    assert card == load_probe(folder, verify=False).card
    assert load_probe(tmp_path / "ours", probe_model=SMALL).mismatches == ()


def test_only_folders_of_the_research_project_are_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact(tmp_path / "ours")
    folder = legacy_folder(tmp_path / "legacy")
    before = sorted(file.name for file in folder.iterdir())
    for arguments, message in (
        ([tmp_path / "ours", "--out", tmp_path / "new"], "is a probe artifact already"),
        ([folder, "--out", folder], "which stays: choose another --out"),
        ([folder, "--out", tmp_path], "is no probe folder: remove it or write elsewhere"),
        ([tmp_path / "none", "--out", tmp_path / "new"], "no probe folder at"),
    ):
        assert convert.main([str(argument) for argument in arguments]) == 2
        assert message in capsys.readouterr().err
    assert sorted(file.name for file in folder.iterdir()) == before
    assert not (tmp_path / "new").exists()
