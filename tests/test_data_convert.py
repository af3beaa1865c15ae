"""Other people's results as rollouts that our commands read, and rollouts as the research project's files."""

import json
import os
import random
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from offline.conversion import split_anew
from offline.evaluate import read_outcomes
from offline.pool_file import arm_names
from offline.rollout_store import METADATA, SCHEMA
from offline.training_set import read_training_set
from server.__main__ import main
from server.config import load

SHARED = Path(__file__).parents[2] / "shared/data"
NANO = Path(__file__).parents[1] / "offline" / "nano_pool" / "rollouts.parquet"
MODELS = ("owner/small-1b", "owner/large-70b")
PRICES = ("--price", "owner/small-1b=0.1/0.2", "--price", "owner/large-70b=1/4")


def answers(n: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    """A long table: easy problems are solved by both models, hard ones by the large one, mostly."""
    rng = random.Random(seed)
    rows = []
    for number in range(n):
        hard = number % 2 == 1
        problem = f"{'Prove the lemma' if hard else 'Add the numbers'} of exercise {number}."
        for model in MODELS:
            p = 0.95 if not hard else 0.8 if "large" in model else 0.1
            rows.append(
                {
                    "idx": number,
                    "topic": "proof" if hard else "sum",
                    "problem": problem,
                    "ground_truth": str(number),
                    "model": model,
                    "response": "It is " + "so " * (number % 5),
                    "is_correct": rng.random() < p,
                }
            )
    return rows


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    table = pa.Table.from_pylist(list(rows))
    match file.suffix:
        case ".parquet":
            pq.write_table(table, file)
        case ".csv":
            pa.csv.write_csv(table, file)
        case ".json":
            file.write_text(json.dumps(list(rows)))
        case ".jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(capsys: pytest.CaptureFixture[str], *arguments: object, command: str = "data") -> tuple[dict[str, Any], str]:
    """The summary, and what people were told."""
    capsys.readouterr()
    words = [command, *(["convert"] if command == "data" else []), *map(str, arguments)]
    code = main(words)
    out, err = capsys.readouterr()
    assert code == 0, err
    summary: dict[str, Any] = json.loads(out.splitlines()[-1])
    return summary, err


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["data", "convert", *map(str, arguments)]) == 2
    err = capsys.readouterr().err
    assert "pika data convert: " in err
    return err


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json", ".csv"])
def test_a_row_per_problem_and_model(tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    rows = answers()
    out = tmp_path / "rollouts.parquet"
    summary, err = run(capsys, write(tmp_path / f"answers{suffix}", rows), "--out", out, *PRICES, "--seed", 3)
    table = pq.read_table(out)
    assert table.schema.remove_metadata().names[: len(SCHEMA)] == SCHEMA.names
    assert summary["rows"] == table.num_rows == 120
    converted = {(row["problem_id"], row["model"]): row for row in table.to_pylist()}
    for row in rows:
        ours = converted[str(row["idx"]), row["model"]]
        assert (ours["problem"], ours["ground_truth"]) == (row["problem"], row["ground_truth"])
        assert (ours["k"], ours["correct"], ours["success_rate"]) == (1, [row["is_correct"]], float(row["is_correct"]))
        assert ours["generated_solutions"] == [row["response"]]
        assert 0 <= 4 * ours["input_tokens"] - len(row["problem"]) < 4
        assert 0 <= 4 * ours["output_tokens"][0] - len(row["response"]) < 4
        input_usd, output_usd = (0.1, 0.2) if "small" in row["model"] else (1, 4)
        usd = (ours["input_tokens"] * input_usd + ours["output_tokens"][0] * output_usd) / 1e6
        assert ours["total_cost_usd"] == pytest.approx(usd)
    provenance = json.loads(table.schema.metadata[METADATA])
    assert provenance["tokens"] == "estimated: characters / 4"
    assert provenance["seed"] == 3
    assert [Path(name).name for name in provenance["inputs"]] == [f"answers{suffix}"]
    assert "Output tokens are estimated: the response's characters / 4." in provenance["notes"]
    assert "correct: is_correct" in err
    assert sum(summary["problems"].values()) == 60


def test_trained_tuned_and_checked_as_any_pool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, pool = tmp_path / "rollouts.parquet", tmp_path / "pool.yaml"
    run(capsys, write(tmp_path / "answers.parquet", answers(200)), "--out", data, "--pool", pool, *PRICES)
    assert "# Input tokens are estimated: the problem's characters / 4." in pool.read_text().splitlines()
    settings = load(pool)
    assert list(settings.arms) == ["small-1b", "large-70b"]  # cheapest first
    assert settings.models["large-70b"].model == "owner/large-70b"
    train = read_training_set(data, list(settings.arms))
    assert settings.arms["small-1b"].mean_tokens is not None
    assert settings.arms["small-1b"].mean_tokens.output == pytest.approx(train.arms[0].mean_tokens.output, abs=0.01)
    run(capsys, pool, "--data", data, "--kind", "tfidf", "--out", tmp_path / "probes", command="train")
    tuned, _ = run(capsys, pool, "--data", data, command="tune")
    assert tuned["file"] == str(tmp_path / "pool.tuned.json")
    # Half of the problems are easy, and their words say so.
    assert tuned["on_validation"]["saving_vs_best"] > 0.2
    assert main(["check", str(pool)]) == 1
    assert "models.small-1b has no replicas" in " ".join(capsys.readouterr().out.split())
    for command in ("serve", "up"):
        assert main([command, str(pool), "--port", "0"]) == 2
        assert "models.small-1b has no replicas: say where it runs" in capsys.readouterr().err


def test_splits_are_seeded_and_steady(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def splits(name: str, n: int, *words: object) -> dict[str, str]:
        file = write(tmp_path / f"{name}.jsonl", answers(n))
        run(capsys, file, "--out", tmp_path / f"{name}.parquet", *PRICES, *words)
        table = pq.read_table(tmp_path / f"{name}.parquet")
        return dict(zip(table["problem"].to_pylist(), table["split"].to_pylist(), strict=True))

    first = splits("first", 400)
    assert splits("again", 400) == first
    assert splits("other", 400, "--seed", 1) != first
    more = splits("more", 500)
    assert {problem: more[problem] for problem in first} == first
    share = [list(first.values()).count(name) / 400 for name in ("train", "validation", "test")]
    assert share == pytest.approx([0.6, 0.2, 0.2], abs=0.08)
    halves = splits("halves", 400, "--split", "train=.5,val=.25,test=.25")
    assert list(halves.values()).count("train") / 400 == pytest.approx(0.5, abs=0.08)
    outcomes = read_outcomes(tmp_path / "halves.parquet", "validation", ["small-1b", "large-70b"])
    assert 60 < len(outcomes.problems) < 140


def test_a_problem_under_two_ids_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "split": "train" if row["idx"] < 40 else "test"} for row in answers()]
    repeated = [{**row, "idx": 900 + row["idx"], "split": "test"} for row in rows[:10]]
    again = [{**row, "idx": 950, "problem": f"  {row['problem']}\n"} for row in rows[-2:]]
    file = write(tmp_path / "answers.parquet", [*rows, *repeated, *again])
    summary, err = run(capsys, file, "--out", tmp_path / "kept.parquet", "--keep-splits", *PRICES)
    assert summary["duplicates_removed"] == 6
    assert summary["problems"] == {"train": 40, "test": 20}
    assert "left out: 6 that repeat another's text" in err
    assert "no validation problems, which `pika train` needs" in err
    summary, _ = run(capsys, file, "--out", tmp_path / "anew.parquet", *PRICES)
    assert sum(summary["problems"].values()) == 60
    read_training_set(tmp_path / "anew.parquet", ["small-1b", "large-70b"])


def test_ids_that_each_split_counts_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "idx": row["idx"] % 40, "Split": "train" if row["idx"] < 40 else "test"} for row in answers(80)]
    out = tmp_path / "out.parquet"
    run(capsys, write(tmp_path / "answers.parquet", rows), "--out", out, *PRICES)
    assert len(read_training_set(out, ["small-1b", "large-70b"]).problems) == 80
    assert {"train-0", "test-0"} <= set(pq.read_table(out)["problem_id"].to_pylist())


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """As a limit on files' sizes shows it."""
    write(tmp_path / "answers.parquet", answers(400))
    command = [sys.executable, "-m", "server", "data", "convert", "answers.parquet", "--out", "out.parquet", *PRICES]
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 2; exec {shlex.join(command)}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(NANO.parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "pika data convert: [Errno 27] Error writing bytes to file" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["answers.parquet"]


WIDE = (
    "prompt,eval_name,gpt-4,gpt-4|model_response,gpt-4|total_cost,mixtral,mixtral|model_response,mixtral|total_cost\n"
)


def test_a_column_per_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f'"What,\nis {n}?",sums,1.0,yes,0.01,{0.25 * (n % 5)},"no, no",0.002\n' for n in range(40)]
    (tmp_path / "wide.csv").write_text(WIDE + "".join(lines))
    prices = ("--price", "gpt-4=10/30", "--price", "mixtral=0.6/0.6")
    summary, err = run(capsys, tmp_path / "wide.csv", "--out", tmp_path / "out.parquet", *prices)
    assert list(summary["arms"]) == ["gpt-4", "mixtral"]
    assert "not used: gpt-4|total_cost, mixtral|total_cost" in err
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    mixtral = {row["problem"]: row for row in rows if row["arm"] == "mixtral"}
    assert [mixtral[f"What,\nis {n}?"]["correct"] for n in range(5)] == [[False], [False], [True], [True], [True]]
    assert mixtral["What,\nis 3?"]["generated_solutions"] == ["no, no"]
    assert len({row["problem_id"] for row in rows}) == 40
    # gpt-4 is right always: nothing for a probe to learn.
    assert "gpt-4: its success rate is 1 on all" in err
    assert "no probe of it can be trained: name the other arms" in err
    run(capsys, tmp_path / "wide.csv", "--out", tmp_path / "2.parquet", "--pool", tmp_path / "pool.yaml", *prices)
    arms = load(tmp_path / "pool.yaml").arms
    assert (arms["gpt-4"].probe, arms["gpt-4"].success_probability) == (None, 1.0)
    assert arms["mixtral"].probe == "probes/mixtral"


def test_texts_that_repeat_in_a_wide_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"Q {n % 30}", "strong": n % 2 == 0, "weak": n % 3 == 0} for n in range(33)]
    words = ("--price", "strong=2/2", "--price", "weak=1/1", "--split", "train=.4,validation=.3,test=.3")
    summary, _ = run(capsys, write(tmp_path / "wide.jsonl", rows), "--out", tmp_path / "out.parquet", *words)
    assert (summary["duplicates_removed"], sum(summary["problems"].values())) == (3, 30)
    assert list(summary["arms"]) == ["strong", "weak"]


def test_some_of_the_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"Q{n}", "a/x": float(n % 2), "b": 7 * (n % 3 > 0), "difficulty": 0.5} for n in range(40)]
    file = write(tmp_path / "wide.parquet", rows)
    words = ("--models", "a/x,b", "--threshold", 0.9, "--price", "a/x=1/1", "--price", "b=1/1")
    summary, _ = run(capsys, file, "--out", tmp_path / "out.parquet", "--output-tokens", "b=100", *words)
    assert {arm: one["mean_output_tokens"] for arm, one in summary["arms"].items()} == {"x": 256, "b": 100}
    assert summary["notes"][-1].startswith("Output tokens are assumed, no responses are on record: 100, 256")
    assert "holds the score 7: say with --threshold" in fails(
        capsys, file, "--out", tmp_path / "none.parquet", *words[:2], *words[4:]
    )


def test_repeated_rows_are_the_answers_of_one_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row for row in answers() for _ in range(3)]
    rows = [{**row, "is_correct": row["is_correct"] and number % 3 > 0} for number, row in enumerate(rows)]
    file, out = write(tmp_path / "answers.parquet", rows), tmp_path / "out.parquet"
    summary, _ = run(capsys, file, "--out", out, *PRICES)
    assert summary["arms"]["small-1b"]["k"] == 3
    assert {row["success_rate"] for row in pq.read_table(out).to_pylist()} == {0, 2 / 3}
    summary, _ = run(capsys, file, "--out", tmp_path / "2.parquet", "--k", 2, *PRICES)
    assert set(pq.read_table(tmp_path / "2.parquet")["success_rate"].to_pylist()) == {0, 0.5}
    assert "model 'owner/small-1b' has at most 3 answers" in fails(
        capsys, file, "--out", tmp_path / "4.parquet", "--k", 4, *PRICES
    )
    fewer = write(tmp_path / "fewer.parquet", rows[1:])
    message = fails(capsys, fewer, "--out", tmp_path / "3.parquet", *PRICES)
    assert "arm 'small-1b' mixes k: answers are 2 to 1 problems, 3 to 59 problems; --k N takes the first N" in message
    summary, _ = run(capsys, fewer, "--out", tmp_path / "3.parquet", "--drop-incomplete", *PRICES)
    assert (summary["incomplete_dropped"], summary["rows"]) == (1, 118)


def test_problems_that_a_model_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = answers()[:-1]
    rows[0] = {**rows[0], "is_correct": None}
    file, out = write(tmp_path / "answers.jsonl", rows), tmp_path / "out.parquet"
    message = fails(capsys, file, "--out", out, *PRICES)
    assert "2 of 60 problems lack an arm" in message
    assert "--drop-incomplete leaves them out" in message
    assert not out.exists()
    summary, _ = run(capsys, file, "--out", out, "--drop-incomplete", *PRICES)
    assert (summary["incomplete_dropped"], summary["rows"]) == (2, 116)
    assert "1 answers without a verdict were left out." in summary["notes"]


def test_tokens_that_are_on_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "prompt_tokens": 11, "completion_tokens": 22.0} for row in answers()]
    summary, _ = run(capsys, write(tmp_path / "a.csv", rows), "--out", tmp_path / "a.parquet", *PRICES)
    assert (summary["tokens"], summary["notes"]) == ("recorded", [])
    assert {(one["mean_input_tokens"], one["mean_output_tokens"]) for one in summary["arms"].values()} == {(11, 22)}
    rows[0]["completion_tokens"] = float("nan")
    summary, _ = run(capsys, write(tmp_path / "b.parquet", rows), "--out", tmp_path / "c.parquet", *PRICES)
    assert summary["notes"] == ["Output tokens are estimated: the response's characters / 4."]


def test_what_the_models_said_is_no_ground_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"question": f"Q{n}", "llm": llm, "answer": f"{llm} {n}", "label": n % 2} for n in range(40) for llm in "xy"
    ]
    file, out = write(tmp_path / "a.parquet", rows), tmp_path / "out.parquet"
    words = ("--out", out, "--price", "x=1/1", "--price", "y=1/1")
    assert "so it is no ground truth: say what it is, such as --column response=answer" in fails(capsys, file, *words)
    run(capsys, file, *words, "--column", "response=answer")
    assert {row["generated_solutions"][0][:1] for row in pq.read_table(out).to_pylist()} == {"x", "y"}


def test_prices_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "answers.parquet", answers())
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps({MODELS[0]: {"input": 0, "output": 0}, "large-70b": {"input": 1, "output": 1}}))
    summary, _ = run(capsys, file, "--out", tmp_path / "a.parquet", "--prices", prices)
    assert summary["arms"]["small-1b"]["mean_cost_usd"] == 0
    prices.write_text("large-70b: {input: 1}\n")
    assert "the price of 'large-70b' is none" in fails(
        capsys, file, "--out", tmp_path / "b.parquet", "--prices", prices
    )


def change(**fields: Any) -> list[dict[str, Any]]:
    return [{**row, **fields} for row in answers()]


def without(name: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != name} for row in answers()]


@pytest.mark.parametrize(
    ("rows", "words", "message"),
    [
        (without("problem"), PRICES, "no column holds the problem: name it with --column problem=NAME"),
        (without("is_correct"), PRICES, "no column holds the correct: name it with --column correct=NAME"),
        (without("model"), ["--column", "correct=none"], "there is a price of"),
        (change(is_correct="perhaps"), PRICES, "holds 'perhaps', which says neither right nor wrong"),
        (change(is_correct=float("inf")), PRICES, "holds inf"),
        (change(is_correct=4.5), PRICES, "holds the score 4.5: say with --threshold"),
        (change(is_correct=float("nan")), PRICES, "has at most 0 answers with a verdict"),
        (change(problem=""), PRICES, "column 'problem' is empty in row 1"),
        (change(model=None), PRICES, "column 'model' is empty in row 1"),
        (change(problem=[{"role": "user"}]), PRICES, "column 'problem' holds a list in row 1: make it text"),
        (change(output_tokens=-1), PRICES, "column 'output_tokens' holds '-1': it must be a number of tokens"),
        (change(idx=7), PRICES, "idx 7 stands for two problems: name another column with --column id=NAME"),
        (answers(), [], "no price of owner/small-1b, owner/large-70b: give --price owner/small-1b=IN/OUT"),
        (answers(), [*PRICES, "--price", "gpt=1/1"], "there is a price of 'gpt', but no such model"),
        (answers(), ["--price", "owner/small-1b"], "write --price MODEL=IN/OUT"),
        (answers(), ["--price", "owner/small-1b=nan/1"], "write --price MODEL=IN/OUT"),
        (answers(), [*PRICES, "--column", "verdict=is_correct"], "there is no 'verdict'; one of problem, id"),
        (answers(), [*PRICES, "--column", "correct=passed"], "no such column; the columns are idx, topic"),
        (answers(), [*PRICES, "--models", "gpt-4"], "--models: no column 'gpt-4'"),
        (answers(), [*PRICES, "--keep-splits"], "no column holds the split"),
        (answers(), [*PRICES, "--split", "train=.5,test=.5", "--keep-splits"], "give one of them"),
        (answers(), [*PRICES, "--output-tokens", "many"], "write a number of tokens"),
        (answers(3), [*PRICES, "--split", "train=.98,validation=.01,test=.01"], "3 problems leave the split"),
    ],
)  # fmt: skip
def test_bad_input_names_the_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], words: Sequence[str], message: str
) -> None:
    file = write(tmp_path / "answers.parquet", rows)
    if message == "there is a price of":  # a wide table, whose only column of verdicts is taken for a model's
        words = [*words, "--price", "other=1/1"]
    assert message in fails(capsys, file, "--out", tmp_path / "out.parquet", *words)
    assert {path.name for path in tmp_path.iterdir()} == {"answers.parquet"}


def test_files_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", tmp_path / "out.parquet")
    assert "cannot read" in fails(capsys, tmp_path / "absent.parquet", *out)
    (tmp_path / "data.pkl").write_bytes(b"\x80")
    assert "must end in .parquet, .jsonl, .json or .csv" in fails(capsys, tmp_path / "data.pkl", *out)
    (tmp_path / "bad.jsonl").write_text("{")
    assert "cannot read" in fails(capsys, tmp_path / "bad.jsonl", *out)
    (tmp_path / "bad.json").write_text('{"a": 1}')
    assert "an array with an object per row" in fails(capsys, tmp_path / "bad.json", *out)
    (tmp_path / "none.csv").write_text("problem,model,correct\n")
    assert "no rows" in fails(capsys, tmp_path / "none.csv", *out)
    file = write(tmp_path / "answers.parquet", answers())
    assert "exists: remove it" in fails(capsys, file, "--out", file, *PRICES)
    assert "whose name ends in .parquet" in fails(capsys, file, "--out", tmp_path / "folder", *PRICES)
    for words in (["--split", "train=.5"], ["--split", "train"], ["--k", "0"]):
        with pytest.raises(SystemExit) as ended:
            main(["data", "convert", str(file), "--out", "o.parquet", *words])
        assert ended.value.code == 2
        assert "train=.6,validation=.2,test=.2" in (err := capsys.readouterr().err) or "no positive whole number" in err


def test_arms_have_names_that_a_pool_may_use() -> None:
    models = ["owner/Model-7B", "a/same", "b/same", "autocoder:7b", "x" * 80]
    names = arm_names(models)
    assert list(names.values()) == ["Model-7B", "a--same", "b--same", "model-autocoder-7b", "x" * 64]
    with pytest.raises(ValueError, match="would both be the arm"):
        arm_names(["a b", "a?b"])
    with pytest.raises(ValueError, match="no letter or digit"):
        arm_names(["???"])


def test_no_split_depends_on_white_space() -> None:
    rows = [{"problem": "Add  1"}, {"problem": "Add 1"}, *({"problem": str(n)} for n in range(50))]
    split = split_anew(rows, {"train": 0.5, "test": 0.5}, 0)
    assert split[0]["split"] == split[1]["split"]


def few_rollouts(folder: Path) -> Path:
    """Some of the nano pool's, as `pika rollouts` wrote them."""
    table = pq.read_table(NANO)
    ids = [f"{split}-{n}" for split in ("train", "validation", "test") for n in range(8)]
    known = pc.unique(table["problem_id"]).to_pylist()
    chosen = [one for one in ids if one in known] or [*known[:8], *known[3000:3008], *known[-8:]]
    few = table.filter(pc.is_in(table["problem_id"], pa.array(chosen)))
    pq.write_table(few, folder / "nano.parquet")
    return folder / "nano.parquet"


KEPT = (
    "problem_id", "split", "benchmark", "problem", "formatted_prompt", "ground_truth", "k", "temperature", "max_tokens",
    "generated_solutions", "correct", "success_rate", "pass_at_k", "majority_vote_answer", "majority_vote_is_correct",
    "input_tokens", "output_tokens",
)  # fmt: skip
COSTS = ("input_cost_usd_once", "total_output_cost_usd", "total_cost_usd")


def test_there_and_back_loses_nothing_that_both_forms_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = few_rollouts(tmp_path)
    before = pq.read_table(file).to_pylist()
    summary, err = run(capsys, file, "--out", tmp_path / "data")
    assert "no place for the arms' own names, the extracted answers, seeds and metadata" in err
    first = before[0]
    name = f"train_maxlen_{first['max_tokens']}_k_{first['k']}_temp_{first['temperature']}.parquet"
    path = tmp_path / "data" / "nano" / first["model"] / "running_total" / name
    assert str(path) in summary["files"]
    theirs = pq.read_table(path).to_pylist()
    assert [row["idx"] for row in theirs] == list(range(len(theirs)))
    assert theirs[0]["model_name"] == first["model"]
    assert [one["score"] for one in theirs[0]["generated_solutions"]] == [float(one) for one in first["correct"]]
    assert {row["split"] for path in summary["files"] for row in pq.read_table(path).to_pylist()} == {
        "train",
        "val",
        "test",
    }
    run(capsys, tmp_path / "data", "--out", tmp_path / "back.parquet")

    def key(row: Mapping[str, Any]) -> tuple[str, str, str]:
        return row["model"], row["split"], row["problem_id"]

    after = {key(row): row for row in pq.read_table(tmp_path / "back.parquet").to_pylist()}
    assert len(after) == len(before) > 0
    for row in before:
        again = after[key(row)]
        assert {name: again[name] or "" for name in KEPT} == {name: row[name] or "" for name in KEPT}
        assert [again[name] for name in COSTS] == pytest.approx([row[name] for name in COSTS])


def test_rollouts_become_files_that_were_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = few_rollouts(tmp_path)
    assert "these are rollouts already" in fails(capsys, file, "--out", tmp_path / "again.parquet")
    run(capsys, file, "--out", tmp_path / "data")
    assert "exists: remove it, or name another --out" in fails(capsys, file, "--out", tmp_path / "data")
    mixed = pq.read_table(file).to_pylist()
    mixed[1]["max_tokens"] += 1
    write(tmp_path / "mixed.parquet", mixed)
    assert "mixes max_tokens" in fails(capsys, tmp_path / "mixed.parquet", "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def research_rows(split: str) -> list[dict[str, Any]]:
    """As the research project's script writes them where it knows no prices; it shuffles no columns."""
    return [
        {
            "idx": n,
            "problem": f"{split} {n}",
            "formatted_prompt": f"<user>{split} {n}",
            "ground_truth": "1",
            "generated_solutions": [
                {
                    "text": "a",
                    "score": float(i < n % 3),
                    "input_tokens": 9,
                    "output_tokens": 3 + i,
                    "output_cost_usd": None,
                }
                for i in range(2)
            ],
            "total_cost_usd": float("nan"),
            "input_cost_usd_once": float("nan"),
            "success_rate": (n % 3) / 2,
            "pass_at_k": float(n % 3 > 0),
            "model_name": "openai/gpt-oss-20b",
            "task": "MATH",
            "split": split,
        }
        for n in (*range(6), 5)
    ]


def test_the_research_projects_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for effort in ("low", "high"):
        folder = tmp_path / "data" / "openai" / f"gpt-oss-20b_{effort}" / "MATH"
        folder.mkdir(parents=True)
        for split in ("train", "val", "test"):
            write(folder / f"{split}_maxlen_131072_k_2_temp_1.0.parquet", research_rows(split))
    out, pool = tmp_path / "rollouts.parquet", tmp_path / "pool.yaml"
    low, high = "openai--gpt-oss-20b_low", "openai--gpt-oss-20b_high"
    prices = ("--price", f"{low}=0.05/0.2", "--price", f"{high}=0.05/0.2")
    summary, _ = run(capsys, tmp_path / "data", "--out", out, "--pool", pool, *prices)
    assert summary["problems"] == {"train": 6, "validation": 6, "test": 6}
    assert summary["tokens"] == "recorded"
    assert summary["duplicates_removed"] == 3  # of each split's, which repeats one
    data = read_training_set(out, list(load(pool).arms))
    assert data.benchmark == "MATH"
    assert {(arm.model, arm.k, arm.temperature, arm.max_tokens) for arm in data.arms} == {
        (f"openai/gpt-oss-20b_{effort}", 2, 1.0, 131072) for effort in ("low", "high")
    }
    assert data.success_rate[data.rows("test")].T.tolist() == [[0, 0.5, 1, 0, 0.5, 1]] * 2
    assert pq.read_table(out)["total_cost_usd"][0].as_py() == pytest.approx((9 * 0.05 + 7 * 0.2) / 1e6)


def test_a_problem_that_is_trained_on_for_one_arm_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"problem": f"Q {n}", "success_rate": n % 2, "k": 1, "model": model, "split": "test" if n == late else "train"}
        for model, late in (("a/a", 8), ("b/b", 9))
        for n in range(40)
    ]
    file, out = write(tmp_path / "rates.jsonl", rows), tmp_path / "out.parquet"
    message = fails(capsys, file, "--out", out)
    assert "is in test for one arm and in train for another" in message
    assert "--split makes new splits for all" in message
    run(capsys, file, "--out", out, "--split", "train=.5,validation=.25,test=.25")
    read_training_set(out, ["a--a", "b--b"])


def test_samples_without_token_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"problem": "12345", "generated_solutions": [{"text": "a" * 9, "score": 1.0}], "split": "train"}]
    file, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.parquet"
    summary, _ = run(capsys, file, "--out", out, "--model", "a/m", "--price", "a/m=1/1")
    assert summary["tokens"] == "estimated: characters / 4"
    [row] = pq.read_table(out).to_pylist()
    assert (row["input_tokens"], row["output_tokens"], row["correct"]) == (2, [3], [True])


def test_that_tokens_were_estimated_is_not_forgotten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = run(capsys, write(tmp_path / "a.jsonl", answers()), "--out", tmp_path / "1.parquet", *PRICES)
    run(capsys, tmp_path / "1.parquet", "--out", tmp_path / "data")
    again, _ = run(capsys, tmp_path / "data", "--out", tmp_path / "2.parquet")
    assert again["tokens"] == "estimated: characters / 4"
    assert again["notes"] == first["notes"]


def test_success_rates_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"Q {n}", "answer": "7", "success_rate": n % 5 / 4, "split": "train"} for n in range(20)]
    file, out = write(tmp_path / "rates.parquet", rows), tmp_path / "out.parquet"
    assert "tell the model: give --model OWNER/NAME" in fails(capsys, file, "--out", out)
    assert "nothing tells how many samples a success rate is of: give --k N" in fails(
        capsys, file, "--out", out, "--model", "owner/m"
    )
    words = (
        "--out",
        out,
        "--model",
        "owner/m",
        "--price",
        "owner/m=1/1",
        "--split",
        "train=.5,validation=.25,test=.25",
    )
    assert "is not that of 3 samples" in fails(capsys, file, *words, "--k", 3)
    summary, _ = run(capsys, file, *words, "--k", 4)
    assert summary["tokens"] == "estimated: characters / 4"
    table = pq.read_table(out).to_pylist()
    assert [sum(row["correct"]) / row["k"] for row in table] == [row["success_rate"] for row in table]
    assert {row["ground_truth"] for row in table} == {"7"}
    read_training_set(out, ["owner--m"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data")
def test_the_golden_success_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", "research/tiny", "--k", 5, "--temperature", 0.7, "--out", tmp_path / "golden.parquet")
    summary, _ = run(capsys, SHARED / "golden" / "dataset.parquet", *words)
    assert summary["problems"] == {"train": 400, "validation": 100, "test": 200}
    golden = pq.read_table(SHARED / "golden" / "dataset.parquet")
    ours = pq.read_table(tmp_path / "golden.parquet")
    for name in ("success_rate", "formatted_prompt"):
        assert ours[name].to_pylist() == golden[name].to_pylist()
    assert ours["majority_vote_is_correct"].to_pylist() == [
        one == 1 for one in golden["majority_vote_is_correct"].to_pylist()
    ]


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data")
def test_six_real_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = SHARED / "gsm8k_six_models.parquet", tmp_path / "gsm8k.parquet"
    theirs = pq.read_table(source)
    models = theirs["model"].unique().to_pylist()
    prices = [word for model in models for word in ("--price", f"{model}=1/1")]
    summary, _ = run(capsys, source, "--out", out, "--pool", tmp_path / "pool.yaml", *prices)
    assert sum(summary["problems"].values()) == 1319
    ours = pq.read_table(out)
    for model in models:
        right = pc.mean(theirs.filter(pc.equal(theirs["model"], model))["is_correct"].cast(pa.int8())).as_py()
        assert pc.mean(ours.filter(pc.equal(ours["model"], model))["success_rate"]).as_py() == pytest.approx(right)
    assert len(load(tmp_path / "pool.yaml").arms) == 6
