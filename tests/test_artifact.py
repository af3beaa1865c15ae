"""Probe folders: what is written comes back, and what is wrong with one is said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from probes.artifact import distinct_passes, load_artifact, save_artifact
from probes.base import Inputs, ProbeError
from probes.card import Site
from probes.linear_eoi import LinearEoi
from tests.support.probes import NANO_POOL, artifact, card


def test_an_artifact_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = artifact(tmp_path / "a", seed=3)
    again = load_artifact(tmp_path / "a")
    assert again.card == written.card
    x = np.random.default_rng(0).normal(size=(5, 96)).astype(np.float32)
    inputs = Inputs(activations={Site(layer=1, position=-1): x})
    assert np.array_equal(again.probe.raw(inputs), written.probe.raw(inputs))
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["config.json", "probe.safetensors"]
    assert again.pass_ is not None
    assert again.pass_.probe_model == str(NANO_POOL / "nano-small")
    assert json.loads((tmp_path / "a/config.json").read_text())["pass"]["dtype"] == "float32"


def test_a_new_revision_replaces_the_old_one_whole(tmp_path: Path) -> None:
    first = artifact(tmp_path / "a", seed=1)
    second = artifact(tmp_path / "a", seed=2)
    assert first.revision != second.revision
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("fault", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("renamed", ["a", "new"])
def test_an_interrupted_replacement_leaves_the_old_probe(
    renamed: str, fault: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = artifact(tmp_path / "a", seed=1)
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name != renamed:
            return rename(self, target)
        if fault is KeyboardInterrupt:  # comes after the call as well as before it
            rename(self, target)
        raise fault

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", interrupted)
        with pytest.raises(fault):
            artifact(tmp_path / "a", seed=2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    whole = load_artifact(tmp_path / "a").revision
    assert (whole == first.revision) == (renamed == "a" or fault is OSError)


def test_saving_does_not_overwrite_other_folders(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ProbeError, match="is no probe folder: remove it or write elsewhere"):
        save_artifact(tmp_path, card(), LinearEoi(np.zeros(96, dtype=np.float32), Site(layer=1, position=-1)))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_equal_passes_are_one(tmp_path: Path) -> None:
    models = ("nano-small", "nano-large", "nano-small")
    artifacts = [artifact(tmp_path / f"{i}" / "deep", model, layer=i) for i, model in enumerate(models)]
    assert [Path(pass_.probe_model).name for pass_ in distinct_passes(artifacts)] == ["nano-small", "nano-large"]


def edit(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))

    return change


def weights(**tensors: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        save_file(tensors, folder / "probe.safetensors")

    return change


def grow(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / name).open("r+b") as file:
            file.truncate(2**30)  # sparse

    return change


FLAWS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing"),
    "no weights": (lambda folder: (folder / "probe.safetensors").unlink(), r"probe\.safetensors is missing"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
    "no object": (lambda folder: (folder / "config.json").write_text("[]"), "must hold a JSON object"),
    "schema": (edit(schema_version=2), "schema_version is 2, this release reads 1"),
    "unknown key": (edit(colour="red"), "colour: Extra inputs"),
    "unknown kind": (edit(kind="os"), "kind|unknown probe 'os': choose one of linear_eoi"),
    "outside": (edit(files=["config.json", "../../etc/passwd"]), "passwd"),
    "no safetensors": (
        lambda folder: (folder / "probe.safetensors").write_bytes(b"\x80\x04."),
        "not a safetensors file",
    ),
    "shape": (weights(weight=np.zeros(7, np.float32)), r"shape \(7,\), d_model = 96 asks for \(96,\)"),
    "not finite": (weights(weight=np.full(96, np.nan, np.float32)), "not finite"),
    "dtype": (weights(weight=np.zeros(96, np.int64)), "is int64, not float32"),
    "tensors": (weights(w=np.zeros(96, np.float32)), "has one tensor, weight; found w"),
    "huge config": (grow("config.json"), "more than 4 MiB"),
    "huge weights": (grow("probe.safetensors"), "more than 256 MiB"),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_flaws_are_named(flaw: str, tmp_path: Path) -> None:
    artifact(tmp_path / "a")
    change, message = FLAWS[flaw]
    change(tmp_path / "a")
    with pytest.raises(ProbeError, match=message):
        load_artifact(tmp_path / "a")


def test_a_missing_folder_or_probe_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"no probe folder at .* name one that `pika train` wrote"):
        load_artifact(tmp_path / "none")
    artifact(tmp_path / "a")
    moved = tmp_path / "elsewhere" / "deep" / "a"
    moved.parent.mkdir(parents=True)
    (tmp_path / "a").rename(moved)
    with pytest.raises(ProbeError, match=r"no folder at .* give a folder or a Hub id"):
        load_artifact(moved)
    assert load_artifact(moved, verify=False).pass_ == load_artifact(moved, verify=False).card.pass_
