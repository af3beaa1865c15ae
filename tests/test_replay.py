"""`pika replay` over ledgers that a gateway's writer could have filled."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sqlalchemy import update

from offline.bench.replay_ledger import POOL, Truth, fill
from offline.replay_plan import ReplayError, parse_time
from routing_policies.base import build
from server.__main__ import main
from server.ledger import tables
from server.ledger.database import open_database
from server.ledger.insert import insert, pool_id
from server.ledger.reader import read_decisions
from server.ledger.row import PoolRow
from tests.support.ledger import decision

COUNT = 12_000
TIER = tuple((200 * i + out * o) / 1e6 for (i, o), (_, out) in zip(POOL.prices, POOL.mean_tokens, strict=True))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    """A tenth of the requests audited, half with an outcome, over the last ten days."""
    file = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    database, now = open_database(f"sqlite:///{file}"), time.time()
    truth = fill(database, COUNT, 0, now - 10 * 86_400, now - 60, audit=0.1, told=0.5)
    database.close()
    return file, truth


@pytest.fixture
def ledger(filled: tuple[Path, Truth]) -> str:
    return f"sqlite:///{filled[0]}"


def config(folder: Path, ledger: str, **policy: Any) -> Path:
    models = {
        name: {
            "model": f"owner/{name}",
            "max_context_tokens": 4096,
            "usd_per_million_tokens": {"input": i, "output": o},
        }
        for name, (i, o) in zip(POOL.arms, POOL.prices, strict=True)
    }
    arms = {
        name: {"model": name, "success_probability": 0.5, "mean_tokens": {"input": 1, "output": 1}} for name in models
    }
    pool = {
        "models": models,
        "arms": arms,
        "policy": policy or {"name": "utility", "lambda": 0.4},
        "ledger": {"url": ledger},
    }
    (folder / "pool.yaml").write_text(yaml.safe_dump(pool, sort_keys=False))
    return folder / "pool.yaml"


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = main(["replay", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def found(capsys: pytest.CaptureFixture[str], *words: str | Path) -> Any:
    code, out, err = run(capsys, *words, "--json")
    assert code == 0, err
    [line] = out.splitlines()
    return json.loads(line)


def holds(estimate: dict[str, float], value: float) -> bool:
    return estimate["low"] <= value <= estimate["high"]


def test_what_is_found_is_true(filled: tuple[Path, Truth], ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = found(
        capsys, "--ledger", ledger, "--policy", "utility lambda=0.1,1.0", "--policy", "cascade thresholds=0.7"
    )
    truth, database = filled[1], open_database(ledger)
    rows = read_decisions(database)
    database.close()
    assert result["requests"] == COUNT
    assert result["left_out"] == {}
    was = result["as_it_was"]
    assert was["cost_usd"] == pytest.approx((rows.cost_usd + rows.probe_usd).mean())
    assert was["from_outcomes"]["inverse_propensity"]["value"] == pytest.approx(np.nanmean(rows.outcome))
    knobs = [(one["policy"], one["knobs"]) for one in result["what_if"]]
    assert knobs == [("utility", {"lambda": 0.1}), ("utility", {"lambda": 1.0}), ("cascade", {"thresholds": 0.7})]
    for one in result["what_if"]:
        arms = build(one["policy"], one["knobs"], TIER).choose(rows.success, rows.cost)
        assert one["mix"] == pytest.approx(dict(zip(POOL.arms, np.bincount(arms, minlength=4) / COUNT, strict=True)))
        assert one["changed"] == pytest.approx((arms != rows.arm).mean())
        right = float(truth.success_rate[np.arange(COUNT), arms].mean())
        assert one["expected_accuracy"]["value"] == pytest.approx(right, abs=1e-6)
        assert holds(one["from_outcomes"]["inverse_propensity"], right)
        assert holds(one["from_outcomes"]["doubly_robust"], right)
        best = next(row for row in result["always"] if row["arm"] == "reasoning")
        for against, row in (("as_it_was", was), ("always_best", best)):
            saving = one[f"saving_vs_{against}"]
            assert saving["value"] == pytest.approx(1 - one["cost_usd"] / row["cost_usd"])
            assert saving["low"] < saving["value"] < saving["high"]
    assert result["best"] == "reasoning"
    assert [one["arm"] for one in result["always"]] == list(POOL.arms)


def test_either_database(ledger_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    database = open_database(ledger_url)
    fill(database, 500, 2, time.time() - 3600, time.time(), audit=0.5, told=1.0)
    database.close()
    result = found(
        capsys, "--ledger", ledger_url, "--since", "2h", "--policy", "utility lambda=0.5", "--sweep", "lambda"
    )
    assert result["requests"] == 500
    assert result["what_if"][0]["from_outcomes"]["inverse_propensity"] is not None
    knobs = [one["knobs"]["lambda"] for one in result["sweep"]]
    assert knobs == sorted(set(knobs))


def test_the_file_itself(filled: tuple[Path, Truth], capsys: pytest.CaptureFixture[str]) -> None:
    assert found(capsys, "--ledger", filled[0], "--policy", "min_cost")["requests"] == COUNT


def test_tables_for_people(ledger: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--policy", "max_success", "--sweep", "lambda", "--plot", tmp_path / "frontier.png")
    code, out, err = run(capsys, "--ledger", ledger, *words)
    assert code == 0
    for text in (
        "as it was",
        "max_success",
        "always reasoning",
        "(best)",
        "12,000 requests",
        "Over the knob",
        "lambda=0 ",
    ):
        assert text in out
    assert "by success probabilities, which are as true as the probes" in err
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_the_configured_policy_is_tried_where_none_is_named(
    ledger: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = found(capsys, "--ledger", config(tmp_path, ledger, name="min_success", min_success=0.7))
    assert [(one["policy"], one["knobs"]) for one in result["what_if"]] == [("min_success", {"min_success": 0.7})]
    tuned = {
        "policy": "target_accuracy",
        "knobs": {"accuracy": 0.8, "lambda": 0.3},
        "table": [[0.5, 1e6], [0.9, 0.0]],
        "guarantee": None,
    }
    (tmp_path / "policy.tuned.json").write_text(json.dumps(tuned))
    result = found(capsys, "--ledger", config(tmp_path, ledger, tuned="policy.tuned.json"), "--sweep", "accuracy")
    assert [(one["policy"], one["knobs"]) for one in result["what_if"]] == [("target_accuracy", {"accuracy": 0.8})]
    assert result["sweep"][0]["knobs"] == {"accuracy": 0.5}
    assert result["sweep"][0]["cost_usd"] < result["sweep"][-1]["cost_usd"]
    code, _, err = run(capsys, "--ledger", config(tmp_path, ledger, tuned="absent.json"))
    assert code == 2
    assert "cannot read" in err
    assert "`pika tune` writes it" in err


def test_other_prices(ledger: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--ledger", ledger, "--policy", "utility lambda=0.4")
    before = found(capsys, *words)
    (tmp_path / "same.yaml").write_text(
        yaml.safe_dump({name: {"input": i, "output": o} for name, (i, o) in zip(POOL.arms, POOL.prices, strict=True)})
    )
    same = found(capsys, *words, "--prices", tmp_path / "same.yaml")
    assert same["what_if"][0]["cost_usd"] == pytest.approx(before["what_if"][0]["cost_usd"], rel=1e-6)
    double = {name: {"input": 2 * i, "output": 2 * o} for name, (i, o) in zip(POOL.arms, POOL.prices, strict=True)}
    (tmp_path / "double.yaml").write_text(yaml.safe_dump(double))
    after = found(capsys, *words, "--prices", tmp_path / "double.yaml")
    probe = 2e-7  # its price stays
    for one, other in zip(
        (before["as_it_was"], *before["what_if"]), (after["as_it_was"], *after["what_if"]), strict=True
    ):
        assert other["cost_usd"] - probe == pytest.approx(2 * (one["cost_usd"] - probe), rel=1e-6)
        assert other["mix"] == one["mix"]
    # A pool's file has prices too; here the dear arm is given away.
    pool = yaml.safe_load(config(tmp_path, ledger).read_text())
    pool["models"]["reasoning"]["usd_per_million_tokens"] = {"input": 0, "output": 0}
    (tmp_path / "free.yaml").write_text(yaml.safe_dump(pool))
    free = found(capsys, *words, "--prices", tmp_path / "free.yaml")
    assert free["what_if"][0]["mix"]["reasoning"] > 0.7
    (tmp_path / "some.yaml").write_text("small: {input: 1, output: 1}")
    code, _, err = run(capsys, *words, "--prices", tmp_path / "some.yaml")
    assert code == 2
    assert "--prices has none of medium, large, reasoning" in err


def test_a_span_of_time(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    day = found(capsys, "--ledger", ledger, "--since", "24h", "--policy", "min_cost")
    assert day["requests"] == pytest.approx(COUNT / 10, abs=30)
    before = found(capsys, "--ledger", ledger, "--until", "24h", "--policy", "min_cost")
    assert before["requests"] + day["requests"] == pytest.approx(COUNT, abs=3)
    code, _, err = run(capsys, "--ledger", ledger, "--since", "2100-01-01")
    assert code == 2
    assert "no decisions of this pool in this time: give an earlier --since" in err


def test_words_of_time() -> None:
    now = 1_800_000_000.0
    assert parse_time("90m", now) == now - 5400
    assert parse_time("2w", now) == now - 14 * 86_400
    assert parse_time("2026-11-01", now) == 1_793_491_200
    assert parse_time("2026-11-01T02:00+02:00", now) == 1_793_491_200
    for text in ("7", "7y", "yesterday", "-7d", "", "9" * 400 + "d"):
        with pytest.raises(ReplayError, match="7d or 4w, or a date"):
            parse_time(text, now)


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    """Requests of every kind, then one among other arms."""
    url = f"sqlite:///{tmp_path}/mixed.sqlite"
    database = open_database(url)
    known = {"success": np.array([0.5, 0.7, 0.9]), "cost": np.array([1e-5, 1e-4, 1e-3])}
    rows = [
        *(decision(f"a{i}", **known) for i in range(20)),
        *(decision(f"s{i}", **known, path="safe-arm", arm=2) for i in range(5)),
        *(decision(f"p{i}", **known, path="pinned") for i in range(4)),
        *(decision(f"b{i}", **known, path="fallback") for i in range(3)),
        *(decision(f"f{i}", **known, code=502) for i in range(2)),
        decision("u"),  # the third arm's probability is unknown
        decision("o", **{**known, "success": np.array([0.5, 0.7, np.nan])}, allowed=np.array([True, True, False])),
    ]
    three = PoolRow(["a", "b", "c"], [(0.1, 0.4), (1.0, 4.0), (10.0, 40.0)], [(10.0, 20.0)] * 3, [None] * 3, {})
    two = PoolRow(["a", "b"], [(0.1, 0.4), (1.0, 4.0)], [(10.0, 20.0)] * 2, [None] * 2, {})
    later = decision("z", success=np.array([0.1, 0.2]), cost=np.array([1.0, 2.0]), allowed=np.array([True, True]))
    with database.write() as connection:
        insert(connection, rows, pool_id(connection, three, 1.0), three)
        insert(connection, [later], pool_id(connection, two, 2.0), two)
    database.close()
    return url


def test_what_no_policy_chose_is_left_out_and_told(mixed: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = found(capsys, "--ledger", mixed, "--pool", "1", "--policy", "min_cost")
    assert result["requests"] == 26
    assert result["left_out"] == {
        "of pools of other arms (see --pool)": 1,
        "failed": 2,
        "pinned by the client": 4,
        "fell back from an arm that failed": 3,
        "lacking a success probability": 1,
    }
    # What went to the safe arm goes there under any policy.
    assert result["what_if"][0]["mix"] == pytest.approx({"a": 21 / 26, "b": 0, "c": 5 / 26})
    code, _, err = run(capsys, "--ledger", mixed, "--pool", "1", "--policy", "min_cost")
    assert code == 0
    assert "4 requests pinned by the client are left out" in err
    newest = found(capsys, "--ledger", mixed, "--policy", "min_cost")
    assert (newest["arms"], newest["requests"]) == (["a", "b"], 1)


def test_where_no_probabilities_are_on_record(mixed: str, capsys: pytest.CaptureFixture[str]) -> None:
    database = open_database(mixed)
    with database.write() as connection:
        nothing = np.full(3, np.nan, dtype="<f4").tobytes()
        connection.execute(update(tables.decisions).where(tables.decisions.c.pool == 1).values(success=nothing))
    code, _, err = run(capsys, "--ledger", mixed, "--pool", "1", "--policy", "min_cost")
    assert code == 2
    assert "has success probabilities of all arms that could serve" in err
    with database.write() as connection:
        connection.execute(update(tables.decisions).where(tables.decisions.c.pool == 1).values(path="pinned"))
    database.close()
    code, _, err = run(capsys, "--ledger", mixed, "--pool", "1")
    assert code == 2
    assert "no policy chose in any of the 36 decisions in this time (1 of pools of other arms" in err


def test_outcomes_of_routing_without_chance_say_why_they_are_silent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    database = open_database(url)
    fill(database, 2000, 1, time.time() - 3600, time.time(), audit=0.0, told=1.0)
    database.close()
    code, out, err = run(capsys, "--ledger", url, "--policy", "max_success")
    assert code == 0
    assert "audit: {share: 0.01}" in err
    assert "max_success" in out
    result = found(capsys, "--ledger", url, "--policy", "max_success")
    assert result["what_if"][0]["from_outcomes"]["inverse_propensity"] is None
    assert result["as_it_was"]["from_outcomes"]["inverse_propensity"] is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--policy", "utilty lambda=1"], "there is no policy 'utilty'; did you mean 'utility'?"),
        (["--policy", ""], "there is no policy ''"),
        (["--policy", "utility lamda=1"], "there is no knob 'lamda'; did you mean 'lambda'?"),
        (["--policy", "utility lambda"], "write lambda=VALUE"),
        (["--policy", "utility lambda=1 lambda=2"], "lambda stands there twice"),
        (["--policy", "utility lambda=x"], "write a number, or several"),
        (["--policy", "utility lambda=-1"], "lambda must be a finite number at least 0"),
        (["--policy", "utility lambda=nan"], "lambda must be a finite number"),
        (["--policy", "utility variant=best"], "unknown variant 'best'"),
        (["--policy", "cascade thresholds=0.1,0.2"], "thresholds must be one number, or 3 for a pool of 4 arms"),
        (["--policy", "target_accuracy accuracy=0.9"], "run `pika tune`"),
        (["--policy", "utility lambda=" + ",".join(map(str, range(300)))], "300 policies are too many"),
        (["--sweep", "lamda"], "no knob 'lamda' to sweep; did you mean 'lambda'?"),
        (["--since", "last week"], "'last week' is no time"),
        (["--pool", "77"], "has no pool 77"),
        (["--prices", "absent.yaml"], "cannot read absent.yaml"),
    ],
)
def test_wrong_words_are_one_clear_line(
    words: list[str], message: str, ledger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "--ledger", ledger, *words)
    assert code in (1, 2)
    assert out == ""
    [line] = [line for line in err.splitlines() if line.strip()]
    assert line.startswith("pika replay: ")
    assert message in line


def test_ledgers_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "--ledger", f"sqlite:///{tmp_path}/typo.sqlite")
    assert code == 1
    assert "there is no ledger at" in err
    assert not (tmp_path / "typo.sqlite").exists()
    empty = f"sqlite:///{tmp_path}/empty.sqlite"
    open_database(empty).close()
    code, _, err = run(capsys, "--ledger", empty)
    assert code == 1
    assert "has no decisions yet" in err
    (tmp_path / "garbage.sqlite").write_bytes(b"garbage" * 1000)
    code, _, err = run(capsys, "--ledger", f"sqlite:///{tmp_path}/garbage.sqlite")
    assert code == 1
    assert "is damaged or no SQLite file" in err
    code, _, err = run(capsys, "--ledger", tmp_path / "absent.yaml")
    assert code == 2
    assert "cannot read" in err


def test_a_picture_that_cannot_be_written(ledger: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "--ledger", ledger, "--plot", tmp_path / "absent/frontier.svg")
    assert code == 1
    assert "No such file or directory; choose another --plot" in err
    with pytest.raises(SystemExit):
        main(["replay", "--ledger", ledger, "--plot", "frontier.gif"])
    assert "ends in .png, .svg or .pdf" in capsys.readouterr().err
