"""Other people's results as rollouts that our commands read, and rollouts as the research project's files."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from offline.conversion import split_anew
from offline.evaluate import read_outcomes
from offline.rollout_store import METADATA, SCHEMA
from offline.training_set import read_training_set
from server.__main__ import main
from server.config import load
from tests.support.convert import MODELS, PRICES, answers, fails, run, write


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


def test_no_split_depends_on_white_space() -> None:
    rows = [{"problem": "Add  1"}, {"problem": "Add 1"}, *({"problem": str(n)} for n in range(50))]
    split = split_anew(rows, {"train": 0.5, "test": 0.5}, 0)
    assert split[0]["split"] == split[1]["split"]
