"""What `pika check` says of every form of probe."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from probes.artifact import save_artifact
from probes.base import Examples, Inputs, Sequences, load
from server.__main__ import main
from server.commands.check import Finding, check
from server.config import load as load_settings
from tests.support.examples import card_of
from tests.support.keys import new_key
from tests.support.legacy import legacy_folder
from tests.support.probes import D_MODEL, NANO_POOL
from tests.test_config import pool, write

SMALL = str(NANO_POOL / "nano-small")


def save(kind: str, folder: Path) -> str:
    """A probe of next to nothing, on nano-small's second layer."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, size=60)
    values = rng.normal(size=(lengths.sum(), D_MODEL["nano-small"])).astype(np.float32)
    inputs = Inputs(
        texts=[f"add {length}" for length in lengths],
        prompt_tokens=lengths,
        sequences={2: Sequences(values, np.cumsum(lengths) - lengths, lengths)},
    )
    examples = Examples(inputs, rng.integers(0, 2, size=(60, 1)).astype(np.float64))
    [fit] = load(kind).fit(examples, examples, "classification")
    changes: dict[str, Any] = {"baselines": {}, **({"d_model": D_MODEL["nano-small"]} if fit.probe.site else {})}
    save_artifact(folder, card_of(fit.probe, **changes), fit.probe)
    return str(folder)


def findings(folder: Path, probes: dict[str, str], **engine: Any) -> list[Finding]:
    """Of a pool whose arms all ask nano-large, by these probes."""
    nano = yaml.safe_load((NANO_POOL / "pool.yaml").read_text())
    model = {**nano["models"]["nano-large"], "model": str(NANO_POOL / "nano-large")}
    arms = {
        name: {"model": "nano-large", "probe": probe, "mean_tokens": {"input": 40, "output": 30}}
        for name, probe in probes.items()
    }
    pool = {"models": {"nano-large": model}, "arms": arms, "engine": engine, "policy": {"name": "max_success"}}
    file = folder / "pool.yaml"
    file.write_text(yaml.safe_dump(pool, sort_keys=False))
    return list(check(load_settings(file)))


def said(found: list[Finding], subject: str) -> list[tuple[bool, str]]:
    return [(one.good, one.message) for one in found if one.subject == subject]


def test_says_what_each_pass_runs(tmp_path: Path) -> None:
    probes = {kind: save(kind, tmp_path / kind) for kind in ("tfidf", "length", "attn")}
    probes["mlp"] = str(NANO_POOL / "probes/nano-large")
    found = findings(tmp_path, probes)
    assert [one for one in found if one.subject not in ("launch", "model nano-large, launched") and not one.good] == []
    assert said(found, "prompts' text") == [(True, "read by tfidf; no probe model runs")]
    [(_, small)] = said(found, "pass of nano-small")
    assert small.startswith("layers 0..2 in float32, read by length, attn; about ")
    [(_, medium)] = said(found, "pass of nano-medium")
    assert medium.startswith("layers 0..5 and the LM head, for next-token statistics, in float32, read by mlp; about ")
    [(_, mlp)] = said(found, "arm mlp")
    assert f"from {probes['mlp']}, revision " in mlp
    assert "output-token head: yes, activation statistics: yes" in mlp
    [(_, tfidf)] = said(found, "arm tfidf")
    assert "output-token head: no, activation statistics: no" in tfidf


def test_probes_that_need_no_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.commands.check.find_spec", lambda name: None)  # without torch
    found = findings(tmp_path, {kind: save(kind, tmp_path / kind) for kind in ("tfidf", "length")})
    assert not said(found, "engine")
    assert said(found, "pass of nano-small") == [(True, "counts tokens for length; no layer runs")]
    found = findings(tmp_path, {"attn": save("attn", tmp_path / "attn")})
    [(good, message)] = said(found, "engine")
    assert not good
    assert "pip install 'pika-router[engine]'" in message


@pytest.mark.parametrize(
    ("task", "of"),
    [
        ("classification", "its probabilities are of the majority vote, not of one answer; flagged uncalibrated"),
        ("regression", "what its probabilities are of is not on record; flagged uncalibrated"),
    ],
)
def test_a_folder_of_the_research_project(
    task: str, of: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = legacy_folder(tmp_path / "old", task, model_name="acme/nano-large")
    found = findings(tmp_path, {"old": str(folder)}, probe_models={"nano-large": SMALL})
    (good, facts), (fine, uncalibrated) = said(found, "arm old")
    assert (good, fine) == (True, False)
    assert "how well it does is not on record" in facts
    assert uncalibrated == f"{of} until `pika probes calibrate {folder} --data ROLLOUTS --out FOLDER`"
    [(good, runs)] = said(found, "pass of nano-small")
    assert runs.startswith("layers 0..1 in bfloat16, read by old")
    assert main(["check", str(tmp_path / "pool.yaml")]) == 1
    assert "checks failed" in capsys.readouterr().out


def test_an_allowed_mismatch_and_another_model(tmp_path: Path) -> None:
    found = findings(
        tmp_path,
        {"small": str(NANO_POOL / "probes/nano-small")},
        dtype="bfloat16",
        allow_mismatch=["dtype"],
    )
    (_, facts), (good, other) = said(found, "arm small")
    assert "in spite of the mismatch dtype, which answers are flagged with" in facts
    assert (good, other) == (False, "its probe predicts the model nano-small, the arm asks nano-large")


def test_says_who_answers_and_who_may_ask(tmp_path: Path) -> None:
    def server(**section: Any) -> tuple[bool, str]:
        file = write(tmp_path, pool(server=section))
        [found] = said(list(check(load_settings(file))), "server")
        return found

    assert server() == (True, "one process answers, at 127.0.0.1:8000")
    good, message = server(workers=4, host="0.0.0.0", public=True)
    assert good
    assert message.startswith("4 processes answer, one engine computes for all")
    assert message.endswith("at 0.0.0.0:8000 for all to reach")
    good, message = server(host="0.0.0.0")
    assert not good
    assert "say --public (server.public: true)" in message
    assert server(host="no.such.host.invalid")[0] is False


def test_keys_and_the_admin_key_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = {"keys": {"file": "keys.yaml"}, "admin": {"key_env": "PIKA_NO_SUCH"}}
    file = write(tmp_path, pool(**sections))
    found = list(check(load_settings(file)))
    assert [said(found, subject)[0][0] for subject in ("keys", "admin")] == [False, False]
    assert "`pika keys add NAME" in said(found, "keys")[0][1]
    new_key(tmp_path / "keys.yaml", "team", requests_per_minute=5)
    monkeypatch.setenv("PIKA_NO_SUCH", "a-long-enough-admin-key")
    found = list(check(load_settings(file)))
    assert said(found, "keys") == [(True, f"1 in {tmp_path}/keys.yaml")]
    assert said(found, "admin") == [(True, "/admin asks for the key in the environment")]
