"""Probe folders: what is written comes back, and what is wrong with one is said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from probes.artifact import distinct_passes, load_artifact, save_artifact
from probes.base import Inputs, Probe, ProbeError
from probes.card import Site
from probes.length import Length
from probes.linear_eoi import LinearEoi
from probes.tfidf import Tfidf
from tests.support.examples import card_of, examples
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


def put(path: str, value: Any) -> Callable[[Path], None]:
    """Change one value within the card; a path such as `site.layer`."""

    def change(folder: Path) -> None:
        config = part = json.loads((folder / "config.json").read_text())
        *before, last = path.split(".")
        for key in before:
            part = part[key]
        part[last] = value
        (folder / "config.json").write_text(json.dumps(config))

    return change


def foreign(dtype: str, size: int) -> Callable[[Path], None]:
    """Weights in a type that NumPy may lack."""

    def change(folder: Path) -> None:
        header = json.dumps({"weight": {"dtype": dtype, "shape": [96], "data_offsets": [0, 96 * size]}}).encode()
        content = len(header).to_bytes(8, "little") + header + bytes(96 * size)
        (folder / "probe.safetensors").write_bytes(content)

    return change


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


SITE = {"layer": 1, "position": -1}
HEAD = {"site": SITE, "bias": 0.0, "smearing": 1.0, "low": 1, "high": 9, "log_rmse": 1.0, "log_rmse_of_mean": 1.0}
STATISTICS = {"site": SITE, "n": 9, "residual_variance": 1.0, "quantiles": [[0, 0], [100, 1]]}
BESIDE = {
    "statistics.mean": np.zeros(96, np.float32),
    "statistics.components": np.zeros((1, 96), np.float32),
    "statistics.variances": np.ones(1, np.float32),
}


def quantiles(*pairs: tuple[float, float]) -> Callable[[Path], None]:
    """Good statistics but for their quantiles."""

    def change(folder: Path) -> None:
        weights(weight=np.zeros(96, np.float32), **BESIDE)(folder)
        edit(statistics=STATISTICS | {"quantiles": pairs})(folder)

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
    "not finite: scale": (
        lambda folder: rewrite(folder, '"scale": 2.0', '"scale": 1e999'),
        "calibration.scale: Input should be a finite number",
    ),
    "not finite: temperature": (put("target.temperature", np.nan), "target.temperature: Input should be a finite"),
    "not finite: mean tokens": (put("mean_tokens.output", np.inf), "mean_tokens.output: Input should be a finite"),
    "not finite: head": (edit(output_tokens=HEAD | {"bias": np.nan}), "output_tokens.bias: Input should be a finite"),
    "not finite: high": (edit(output_tokens=HEAD | {"high": np.inf}), "output_tokens.high: Input should be a finite"),
    "not finite: variance": (
        edit(statistics=STATISTICS | {"residual_variance": np.inf}),
        "statistics.residual_variance: Input should be a finite",
    ),
    "not finite: distance": (quantiles((0, 0), (100, np.nan)), "statistics.quantiles.1.1: Input should be a finite"),
    "percentile": (quantiles((0, 0), (101, 1)), "statistics.quantiles.1.0: Input should be less than or equal to 100"),
    "percentiles fall": (quantiles((50, 0), (10, 1)), "quantiles that rise"),
    "distances fall": (quantiles((0, 1), (100, 0)), "quantiles that rise"),
    "layer": (put("site.layer", 10**30), "site.layer: Input should be less than or equal to 4096"),
    "position": (put("site.position", -(10**30)), "site.position: Input should be greater than or equal to -8192"),
    "head's position": (edit(output_tokens=HEAD | {"site": {"layer": 1, "position": -(10**30)}}), "than or equal to"),
    "d_model": (edit(d_model=10**400), "d_model: Input should be less than"),
    "digits": (lambda folder: rewrite(folder, '"d_model": 96', '"d_model": ' + "9" * 5000), "not valid JSON"),
    "line break": (edit(probe_name="x\r\nset-cookie: a=b"), "probe_name: .* cannot be printed"),
    "escape": (put("target.arm", "\x1b[2J"), "target.arm: .* cannot be printed"),
    "surrogate": (edit(probe_name="\ud800"), "probe_name: Input should be a valid string"),
    "surrogate in a free part": (edit(training={"a": "\ud800"}), "Error serializing to JSON"),
    "long name": (edit(probe_name="x" * 201), "probe_name: String should have at most 200"),
    "long key": (edit(**{"x\n" * 10**5: 1}), r"config.json: (x\\n){20,30}x?\\?: Extra inputs"),
    "long version": (edit(schema_version="9" * 10**5), "schema_version is '9{79}, this release reads 1"),
    "long model": (put("pass.probe_model", "/" + "x" * 5000), "pass.probe_model: String should have at most 1024"),
    "unopenable model": (put("pass.probe_model", "a/" + "x" * 300), "pass.probe_model: .* more than 255 bytes"),
    "model of nobody": (put("pass.probe_model", "~nosuchuser/x"), "'~nosuchuser/x' is no path .* give a folder"),
    "deep": (edit(training={"a": nested(400)}), "serialization depth exceeded"),
    "deeper": (
        lambda folder: (folder / "config.json").write_text('{"a":' * 10**5),
        "not valid JSON: maximum recursion",
    ),
    "many files": (edit(files=["config.json"] * 9), "files: List should have at most 8"),
    "no UTF-8": (lambda folder: (folder / "config.json").write_bytes(b'{"a": "\xff"}'), "not valid JSON"),
    **{
        f"type {dtype}": (foreign(dtype, size), "not a safetensors file of NumPy types")
        for dtype, size in (("BF16", 2), ("F8_E4M3", 1), ("F8_E5M2", 1), ("F8_E8M0", 1))
    },
    "tensor's name": (weights(**{"w\x1b": np.zeros(96, np.float32)}), r"'w\\x1b' is no name of a probe's tensor"),
    "huge config": (grow("config.json"), "more than 4 MiB"),
    "huge weights": (grow("probe.safetensors"), "more than 256 MiB"),
}


def rewrite(folder: Path, old: str, new: str) -> None:
    text = (folder / "config.json").read_text()
    assert old in text
    (folder / "config.json").write_text(text.replace(old, new))


@pytest.mark.parametrize("flaw", FLAWS)
def test_flaws_are_named(flaw: str, tmp_path: Path) -> None:
    artifact(tmp_path / "a")
    change, message = FLAWS[flaw]
    change(tmp_path / "a")
    with pytest.raises(ProbeError, match=message) as caught:
        load_artifact(tmp_path / "a")
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


def test_statistics_that_these_flaws_spoil_are_good(tmp_path: Path) -> None:
    artifact(tmp_path / "a")
    quantiles((0, 0), (100, 1))(tmp_path / "a")
    assert load_artifact(tmp_path / "a").card.statistics is not None


@pytest.mark.parametrize("kind", [Length, Tfidf])
@pytest.mark.parametrize("beside", [{"statistics": STATISTICS}, {"output_tokens": HEAD}], ids=str)
def test_what_needs_activations_stands_beside_no_probe_of_text(
    kind: type[Probe], beside: dict[str, Any], tmp_path: Path
) -> None:
    probe = kind.fit(examples(60, 0), examples(60, 1))[0].probe
    tensors = BESIDE if "statistics" in beside else {"output_tokens.weight": np.zeros(96, np.float32)}
    save_artifact(tmp_path / "a", card_of(probe, **beside, d_model=96), probe, tensors)
    with pytest.raises(ProbeError, match="need activations, of which a probe without a site reads none"):
        load_artifact(tmp_path / "a", verify=False)


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
