import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from offline.evaluate import FloatArray, paired_bootstrap, read_outcomes
from offline.evaluation.known import prefill_usd, saw, validation
from offline.evaluation.sweep import of_chosen
from offline.label import load_probes
from offline.tune import main
from probes.artifact import load_artifact
from probes.length import Length
from server.config import load, pool_sha256
from server.routing.policies import Policies

NANO = Path(__file__).parents[1] / "offline" / "nano_pool"
ARMS = {"small": 0.5, "medium": 0.8, "large": 0.9}
TIER = (1e-6, 4e-6, 8e-5)
POOL = """
models:
  small: {{model: owner/small, max_context_tokens: 512, usd_per_million_tokens: {{input: 0.025, output: 0.1}}, {url}}}
  large: {{model: owner/large, max_context_tokens: 512, usd_per_million_tokens: {{input: 0.5, output: {price}}}, {url}}}
arms:
  small: {{model: small, success_probability: 0.5, mean_tokens: {{input: 20, output: 6}}}}
  medium: {{model: large, request: {{effort: low}}, success_probability: 0.8, mean_tokens: {{input: 20, output: 10}}}}
  large: {{model: large, {probe}, mean_tokens: {{input: 20, output: 40}}}}
policy: {{tuned: policy.tuned.json}}
"""


def write_pool(folder: Path, price: float = 2.0, probe: str = "success_probability: 0.9") -> Path:
    text = POOL.format(url='replicas: [{url: "http://127.0.0.1:1/v1"}]', price=price, probe=probe)
    (folder / "pool.yaml").write_text(text)
    return folder / "pool.yaml"


@pytest.fixture
def rollouts(tmp_path: Path) -> Path:
    """Forty problems on which each arm is as good as its probability says, on average."""
    rows = [
        {
            "arm": arm,
            "split": "validation",
            "problem_id": f"v{number}",
            "problem": f"What is {number} + {number}?",
            "success_rate": p + (-0.09 if number % 10 == 0 else 0.01),
            "input_tokens": 20,
        }
        for number in range(40)
        for arm, p in ARMS.items()
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "rollouts.parquet")
    return tmp_path / "rollouts.parquet"


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str, str]:
    code = main([str(word) for word in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_gateway_reads_what_tune_wrote(tmp_path: Path, rollouts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = write_pool(tmp_path)
    code, out, _ = run(capsys, pool, "--data", rollouts, "--target", "accuracy=0.75")
    assert code == 0
    written = json.loads((tmp_path / "policy.tuned.json").read_text())
    printed = json.loads(out.splitlines()[-1])
    assert printed["file"] == str(tmp_path / "policy.tuned.json")
    assert {key: written[key] for key in printed if key != "file"} == {k: v for k, v in printed.items() if k != "file"}
    assert written["schema_version"] == 1
    assert written["target"] == "accuracy=0.75"
    assert written["data"]["problems"] == 40
    # The cheapest arm that is right often enough: medium, at 20 x 0.5 + 10 x 2 USD per million.
    assert written["on_validation"]["accuracy"] == pytest.approx(0.8)
    assert written["on_validation"]["measured_accuracy"] == pytest.approx(0.8)
    assert written["on_validation"]["cost_usd"] == pytest.approx(3e-5)
    assert "in-sample" in written["note"]
    assert written["best"] == "large"
    assert written["always_best"]["cost_usd"] == pytest.approx(9e-5)
    assert written["on_validation"]["saving_vs_best"] == pytest.approx(2 / 3)

    assert written["provenance"]["inputs"]["rollouts.parquet"] == written["data"]["sha256"]
    # How far the choice would have moved, in the file and before people's eyes.
    assert all(candidate["spread"]["saving_sd"] >= 0 for candidate in written["candidates"])
    assert "Knobs over 200 resampled sets" in out

    policies = Policies(load(pool), TIER, {})
    assert policies.name == written["policy"] == "utility"
    assert not policies.stale
    assert policies.get({"policy": "target_accuracy", "accuracy": 0.9}).name == "target_accuracy"
    # A request for another policy gets that policy at its own tuned knob.
    for candidate in written["candidates"]:
        tuned = policies.get({"policy": candidate["policy"]}).policy
        assert tuned == policies.get({"policy": candidate["policy"], **candidate["knobs"]}).policy


def test_a_tuning_of_another_pool_is_noticed(
    tmp_path: Path, rollouts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, write_pool(tmp_path), "--data", rollouts)[0] == 0
    assert Policies(load(write_pool(tmp_path, price=3.0)), TIER, {}).stale


def test_policies_and_file_of_ones_choice(tmp_path: Path, rollouts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine.json"
    words = ("--data", rollouts, "--policies", "min_success,cascade", "--target", "cost=5e-5", "--out", out)
    code, printed, _ = run(capsys, write_pool(tmp_path), *words)
    assert code == 0
    written = json.loads(out.read_text())
    assert written["policy"] == "cascade"
    assert [candidate["policy"] for candidate in written["candidates"]] == ["min_success", "cascade"]
    assert "min_success" in printed


def test_the_gateway_holds_what_was_guaranteed(
    tmp_path: Path, rollouts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = write_pool(tmp_path)
    words = ("--data", rollouts, "--guarantee", "0.9", "--target", "accuracy=0.8", "--policies", "min_success")
    code, out, err = run(capsys, pool, *words)
    assert (code, err) == (0, "")
    written = json.loads((tmp_path / "policy.tuned.json").read_text())["guarantee"]
    assert (written["level"], written["problems"], written["problems_chose_probes"]) == (0.9, 40, False)
    assert "table" not in json.loads(out.splitlines()[-1])["guarantee"]
    table = dict(written["table"])
    assert len(table) == 99
    # On forty problems medium's .8 bear out .6, and large's .9 bear out .7; nothing bears out .9.
    assert (table[0.6], table[0.9]) == (0.6, None)

    policies = Policies(load(pool), TIER, {})
    success, cost = np.array([list(ARMS.values())]), np.array([TIER])
    for asked, arm, infeasible in ((0.6, 1, False), (0.595, 1, False), (0.9, 2, True)):
        policy = policies.get({"policy": "min_success", "min_success": asked}).policy
        arms = policy.choose(success, cost)
        assert (arms.tolist(), policy.infeasible(success, arms).tolist()) == ([arm], [infeasible])


def test_problems_that_chose_the_probes_guarantee_less_and_a_warning_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--guarantee", "0.9", "--out", tmp_path / "policy.json")
    code, out, err = run(capsys, NANO / "pool.yaml", "--data", NANO / "rollouts.parquet", *words)
    assert code == 0
    assert "the validation problems chose or calibrated probes" in err
    assert json.loads(out.splitlines()[-1])["guarantee"]["problems_chose_probes"]
    assert "with confidence 0.9" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "accuracy=0.95"], "by these probes accuracy is at most 0.9000"),
        (["--split", "holdout"], "no rows of split 'holdout'; its splits: validation"),
        (["--data", "absent.parquet"], "there is no file absent.parquet"),
    ],
)
def test_bad_input_is_one_clear_line(
    tmp_path: Path, rollouts: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    code, _, err = run(capsys, write_pool(tmp_path), "--data", rollouts, *words)
    assert code == 2
    assert err.startswith("pika tune: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_file_that_cannot_be_written_says_so(
    tmp_path: Path, rollouts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "absent" / "policy.json"
    code, _, err = run(capsys, write_pool(tmp_path), "--data", rollouts, "--out", out)
    assert code == 1
    assert f"cannot write {out}: No such file or directory; choose another --out" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "best"], "'best' is no target: accuracy=always-best"),
        (["--target", "accuracy=90"], "accuracy=0.9 (from 0 to 1)"),
        (["--split", "test"], "the test split is for the final figures"),
        (["--guarantee", "90"], "'90' is no confidence: a number between 0 and 1, such as 0.9"),
        (["--policies", "utility,random"], "'random' cannot be tuned: choose of utility,cascade"),
    ],
)
def test_words_that_are_none(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["pool.yaml", "--data", "rollouts.parquet", *words])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_training_problems_flatter_and_a_warning_says_so(
    tmp_path: Path, rollouts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pd.read_parquet(rollouts).assign(split="train").to_parquet(rollouts)
    code, _, err = run(capsys, write_pool(tmp_path), "--data", rollouts, "--split", "train")
    assert code == 0
    assert "the probes were fitted on the train split" in err


def test_a_missing_configuration_says_so(rollouts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "absent.yaml", "--data", rollouts)
    assert code == 2
    assert "cannot read absent.yaml" in err


def test_the_pools_hash_is_of_what_decisions_rest_on(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    first = pool_sha256(load(write_pool(tmp_path)), {})
    assert first == pool_sha256(load(write_pool(tmp_path / "elsewhere")), {})
    assert first != pool_sha256(load(write_pool(tmp_path, price=3.0)), {})
    assert first != pool_sha256(load(write_pool(tmp_path, probe="success_probability: 0.91")), {})
    probed = load(write_pool(tmp_path, probe="probe: probes/large"))
    assert pool_sha256(probed, {"large": "a"}) != pool_sha256(probed, {"large": "b"})

    probe = tmp_path / "probes" / "large"
    shutil.copytree(NANO / "probes" / "nano-large", probe)
    card = json.loads((probe / "config.json").read_text())

    def predictions() -> str:
        return load_artifact(probe, verify=False).predictions_sha256

    hashes = {predictions()}
    (probe / "config.json").write_text(json.dumps(card | {"exported_at": "2000-01-01T00:00:00+00:00", "metrics": []}))
    assert predictions() in hashes  # trained again, to the same probe

    changes = ({"mean_tokens": {"input": 1, "output": 1}}, {"calibration": {"method": "temperature", "scale": 2.0}})
    for change in changes:
        (probe / "config.json").write_text(json.dumps(card | change))
        hashes.add(predictions())
    tensors = load_file(probe / "probe.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, probe / "probe.safetensors")
    hashes.add(predictions())
    assert len(hashes) == 4


def test_tuned_routing_saves_half_on_problems_that_nothing_was_chosen_on() -> None:
    """On what the arms did in truth, the probes' prefill charged."""
    settings = load(NANO / "pool.yaml")
    outcomes = read_outcomes(NANO / "rollouts.parquet", "test", list(settings.arms))
    artifacts = load_probes(settings)
    data = validation(settings, artifacts, outcomes)
    hashes = {name: artifact.predictions_sha256 for name, artifact in artifacts.items()}
    policies = Policies(settings, data.tier_cost, hashes)
    assert not policies.stale
    frame = pd.read_parquet(NANO / "rollouts.parquet").query("split == 'test'")
    frame["usd"] = frame["input_cost_usd_once"] + frame["total_output_cost_usd"] / frame["k"]
    usd = frame.pivot(index="problem_id", columns="arm", values="usd").loc[outcomes.problem_ids, list(settings.arms)]
    spent: FloatArray = usd.to_numpy()

    arms = policies.default.policy.choose(data.success, data.cost)
    best = np.full(len(arms), outcomes.success_rate.mean(axis=0).argmax())
    routed_usd = of_chosen(spent, arms).mean() + data.prefill_usd
    right, right_best = of_chosen(outcomes.success_rate, arms), of_chosen(outcomes.success_rate, best)
    assert len(arms) == 1500
    assert data.prefill_usd > 0
    assert routed_usd < 0.5 * of_chosen(spent, best).mean()
    assert paired_bootstrap(right, right_best)[1] >= 0 or (right - right_best).mean() > -0.01


def test_a_probe_that_reads_no_activation_costs_no_prefill() -> None:
    """Nor does the gateway charge it: its pass only counts tokens."""
    settings = load(NANO / "pool.yaml")
    problems = ["Take 3. Add 4.", "Take 5. Add 6. Add 7."]
    reads = load_artifact(NANO / "probes" / "nano-large")
    counts = replace(reads, probe=Length(np.ones(1, dtype=np.float32), np.zeros(1, dtype=np.float32)))
    assert prefill_usd(settings, [reads], problems) > 0
    assert prefill_usd(settings, [counts], problems) == 0
    assert prefill_usd(settings, [counts, reads], problems) == prefill_usd(settings, [reads], problems)


@pytest.mark.parametrize("calibrated_on", [None, "rollouts.parquet", ["a"], {}])
def test_what_a_probe_was_calibrated_on_may_be_told_in_any_form(calibrated_on: object) -> None:
    probe = load_artifact(NANO / "probes" / "nano-large")
    training = {"rollouts_sha256": "other", "calibrated_on": calibrated_on}
    probe = replace(probe, card=probe.card.model_copy(update={"training": training}))
    assert not saw(probe, "mine", "validation")
    assert saw(probe, "other", "validation")
