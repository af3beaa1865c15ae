"""Probes by their references; what comes from the Hub comes from another machine."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from probes.artifact import load_artifact
from probes.base import ProbeError
from probes.hub import fetch
from probes.reference import load_probe
from tests.support.hub import Hub, running, status
from tests.support.probes import NANO_POOL, artifact

SMALL = str(NANO_POOL / "nano-small")
REFERENCE = "hf://ann/probes/large"


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running() as there:
        there.use(monkeypatch, tmp_path / "home")
        yield there


def publish(hub: Hub, folder: Path, probe_model: str) -> str:
    """A probe whose card names its probe model so; returns the commit."""
    files = {f"large/{file.name}": file.read_bytes() for file in artifact(folder).folder.iterdir()}
    card = json.loads(files["large/config.json"])
    card["pass"]["probe_model"] = probe_model
    files["large/config.json"] = json.dumps(card).encode()
    return hub.repository("ann/probes").commit(dict(files))


@pytest.mark.parametrize("named", ["../../nano-small", "nano-small", SMALL, "~/nano-small"])
def test_a_path_on_a_card_from_the_hub_leads_nowhere_here(loopback: Hub, named: str, tmp_path: Path) -> None:
    commit = publish(loopback, tmp_path / "probe", named)
    with pytest.raises(ProbeError) as caught:
        load_probe(REFERENCE)
    assert f"probe model {named!r} is a folder where the probe was trained, not here" in str(caught.value)
    assert "engine.probe_models: {nano-small: FOLDER} in the configuration, --probe-model FOLDER" in str(caught.value)
    # Not even where the path leads somewhere.
    decoy = tmp_path / "home/hub/models--ann--probes/snapshots" / commit / "nano-small"
    decoy.symlink_to(SMALL)
    with pytest.raises(ProbeError, match="not here"):
        load_probe(REFERENCE)
    for key in (named, "nano-small"):
        loaded = load_probe(REFERENCE, probe_models={key: SMALL})
        assert loaded.pass_ is not None
        assert loaded.pass_.probe_model == SMALL
        assert (loaded.source, loaded.revision) == (f"{REFERENCE}@{commit}", commit)
    # Its files can be looked at without the probe model.
    assert load_probe(REFERENCE, verify=False).pass_ == loaded.card.pass_


def test_a_models_whole_name_goes_before_its_last_part(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "probe").folder
    card = json.loads((folder / "config.json").read_text())
    card["pass"]["probe_model"] = "owner/nano-small"
    (folder / "config.json").write_text(json.dumps(card))
    medium = str(NANO_POOL / "nano-medium")
    for models in ({"nano-small": SMALL}, {"nano-small": medium, "owner/nano-small": SMALL}):
        served = load_artifact(folder, probe_models=models).pass_
        assert served is not None
        assert served.probe_model == SMALL


def test_a_local_path_that_leads_nowhere_says_how_to_go_on(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "probe").folder
    card = json.loads((folder / "config.json").read_text())
    card["pass"]["probe_model"] = "../gone"
    (folder / "config.json").write_text(json.dumps(card))
    with pytest.raises(ProbeError, match=r"no folder at .*engine.probe_models: \{gone: FOLDER\}"):
        load_artifact(folder)


def test_what_fails_a_check_is_not_what_the_cache_gives_later(loopback: Hub, tmp_path: Path) -> None:
    good = publish(loopback, tmp_path / "probe", "owner/nano-small")
    models = {"nano-small": SMALL}
    assert load_probe(REFERENCE, probe_models=models).revision == good
    repository = loopback.repositories["model", "ann/probes"]
    card = {**json.loads(repository.files["large/config.json"]), "canary_token_ids": [1]}
    repository.commit({"large/config.json": json.dumps(card).encode()})
    with pytest.raises(ProbeError, match="canary"):
        load_probe(REFERENCE, probe_models=models)
    loopback.fails("", status(503))
    kept = load_probe(REFERENCE, probe_models=models)
    assert (kept.revision, kept.from_cache) == (good, True)
    assert re.fullmatch(rf"{REFERENCE}@{good}", kept.source)
    assert fetch(REFERENCE).commit == good


def test_another_probe_model_takes_no_second_fetch_and_no_check_less(loopback: Hub, tmp_path: Path) -> None:
    good = publish(loopback, tmp_path / "probe", "owner/anything")

    def requests(**options: Any) -> int:
        before = len(loopback.requests)
        assert load_probe(REFERENCE, **options).revision == good
        return len(loopback.requests) - before

    requests(probe_models={"anything": SMALL})
    assert requests(probe_model=SMALL) == requests(probe_models={"anything": SMALL}) > 0
    repository = loopback.repositories["model", "ann/probes"]
    card = {**json.loads(repository.files["large/config.json"]), "canary_token_ids": [1]}
    repository.commit({"large/config.json": json.dumps(card).encode()})
    with pytest.raises(ProbeError, match="canary"):
        load_probe(REFERENCE, probe_model=SMALL)
    loopback.fails("", status(503))
    # What failed its check is not what the cache gives.
    assert load_probe(REFERENCE, probe_model=SMALL).revision == good
