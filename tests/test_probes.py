"""What holds of every kind of probe. A new kind is covered by its file's being there."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from inspect import isabstract
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from probes.artifact import load_artifact, save_artifact
from probes.base import KINDS, Examples, Fit, Inputs, Probe, ProbeError, load
from probes.card import Site, Task
from probes.measures import auroc, spearman
from tests.support.examples import card_of, examples

ROOT = Path(__file__).parents[1]
N_TRAIN, N_VALIDATION, N_TEST = 300, 200, 300
TASKS: tuple[Task, ...] = get_args(Task)

every_kind = pytest.mark.parametrize("kind", KINDS)
both_tasks = pytest.mark.parametrize("task", TASKS)


def split(noise: bool = False) -> tuple[Examples, Examples, Examples]:
    """Train, validation and test."""
    sizes = (N_TRAIN, N_VALIDATION, N_TEST)
    return tuple(examples(n, seed, noise) for seed, n in enumerate(sizes))  # type: ignore[return-value]  # as many as there are sizes


@cache
def fitted(kind: str, task: Task) -> list[Fit]:
    train, validation, _ = split()
    return load(kind).fit(train, validation, task, seed=3)


@pytest.fixture(scope="module", autouse=True)
def shorter_training() -> Iterator[None]:
    """What holds of every kind holds of networks that were trained for a third as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("probes.mlp.LEAST_STEPS", 300)
        yield


def content(probe: Probe) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in probe.tensors().items()} | probe.files()


def test_every_probe_file_is_a_kind() -> None:
    found = set()
    for file in (ROOT / "probes").glob("*.py"):
        members = vars(import_module(f"probes.{file.stem}")).values()
        classes = [one for one in members if isinstance(one, type) and issubclass(one, Probe) and not isabstract(one)]
        found |= {one.kind for one in classes if one.__module__ == f"probes.{file.stem}"}
    assert found == set(KINDS)


@every_kind
def test_is_found_by_name_and_alias(kind: str) -> None:
    assert load(kind) is load(f"{kind}_probe")
    assert load(kind).kind == kind


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ProbeError, match="choose one of linear_eoi"):
        load("linear")


@every_kind
@both_tasks
def test_learns_each_arm(kind: str, task: Task) -> None:
    _, validation, test = split()
    fits = fitted(kind, task)
    assert len(fits) == 2
    score = spearman if task == "regression" else auroc
    for arm, fit in enumerate(fits):
        outputs = fit.probe.raw(test.inputs)
        assert outputs.shape == (N_TEST,)
        assert outputs.dtype == np.float64
        assert auroc(outputs, test.labels[:, arm]) > 0.75
        raw = fit.probe.raw(validation.inputs)
        assert fit.score == pytest.approx(score(raw, validation.labels[:, arm]), abs=1e-4)
        assert fit.held_out.shape == (N_VALIDATION,)
        assert auroc(fit.held_out, validation.labels[:, arm]) > 0.75


# linear_eoi has no intercept, as in the research code.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "linear_eoi"])
def test_regression_speaks_rates_and_classification_logits(kind: str) -> None:
    _, _, test = split()
    for arm in range(2):
        rates, logits = (fitted(kind, task)[arm].probe.raw(test.inputs) for task in TASKS)
        assert rates.mean() == pytest.approx(test.labels[:, arm].mean(), abs=0.06)
        assert np.mean(1 / (1 + np.exp(-logits))) == pytest.approx(test.labels[:, arm].mean(), abs=0.06)


@every_kind
def test_an_output_does_not_depend_on_the_other_prompts(kind: str) -> None:
    _, _, test = split()
    probe = fitted(kind, "classification")[0].probe
    together = probe.raw(test.inputs)
    some = np.array([170, 3, 250])
    np.testing.assert_allclose(probe.raw(test.inputs.rows(some)), together[some], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(probe.raw(test.inputs.rows(slice(7, 8))), together[7:8], rtol=1e-12, atol=1e-12)
    both = [fit.probe for fit in fitted(kind, "classification")]
    if both[0].site == both[1].site:
        np.testing.assert_allclose(type(probe).raw_all(both, test.inputs)[:, 0], together, rtol=1e-12, atol=1e-12)


IN_A_NEW_PROCESS = """
import sys
from pathlib import Path
from probes.artifact import load_artifact
from tests.support.examples import examples
inputs = examples(int(sys.argv[1]), seed=2).inputs
for folder in map(Path, sys.argv[2:]):
    (folder / "raw").write_bytes(load_artifact(folder, verify=False).probe.raw(inputs).tobytes())
sys.exit(str({"torch", "sklearn", "scipy", "transformers"} & set(sys.modules) or "") or 0)
"""


@every_kind
def test_predicts_the_same_to_the_byte_in_a_new_process_without_torch(kind: str, tmp_path: Path) -> None:
    expected = {}
    _, _, test = split()
    for task in TASKS:
        for arm, fit in enumerate(fitted(kind, task)):
            folder = tmp_path / f"{task}-{arm}"
            save_artifact(folder, card_of(fit.probe), fit.probe)
            expected[folder] = fit.probe.raw(test.inputs).tobytes()
    command = [sys.executable, "-c", IN_A_NEW_PROCESS, str(N_TEST), *map(str, expected)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for folder, outputs in expected.items():
        assert (folder / "raw").read_bytes() == outputs


@every_kind
def test_equal_seeds_give_equal_probes_and_progress_adds_up(kind: str) -> None:
    train, validation, _ = split()
    shares: list[float] = []
    again = load(kind).fit(train, validation, "classification", seed=3, on_step=shares.append)
    assert sum(shares) == pytest.approx(1)
    for one, other in zip(again, fitted(kind, "classification"), strict=True):
        assert content(one.probe) == content(other.probe)
        assert one.held_out.tobytes() == other.held_out.tobytes()


@every_kind
def test_an_arm_is_fitted_alike_whatever_stands_beside_it(kind: str) -> None:
    train, validation, test = split()
    alone = [Examples(one.inputs, one.labels[:, 1:]) for one in (train, validation)]
    [fit] = load(kind).fit(*alone, "classification", seed=3)
    beside = fitted(kind, "classification")[1]
    assert fit.probe.site == beside.probe.site
    np.testing.assert_allclose(fit.probe.raw(test.inputs), beside.probe.raw(test.inputs), rtol=0.01, atol=0.01)


@every_kind
def test_label_noise_teaches_nothing(kind: str) -> None:
    train, validation, test = split(noise=True)
    fits = load(kind).fit(train, validation, "classification")
    scores = [auroc(fit.probe.raw(test.inputs), test.labels[:, arm]) for arm, fit in enumerate(fits)]
    # Rates of one problem go together, so a problem counts about as one sample. The arms' labels go together too.
    standard_error = np.sqrt((2 * N_TEST + 1) / 12) / N_TEST * np.sqrt(2)
    assert np.abs(np.array(scores) - 0.5).max() < 3 * standard_error


@every_kind
def test_says_what_the_inputs_lack(kind: str) -> None:
    train, validation, _ = split()
    bare = [Examples(Inputs(), one.labels) for one in (train, validation)]
    with pytest.raises(ProbeError):
        load(kind).fit(*bare)


@every_kind
def test_constant_labels_are_refused(kind: str) -> None:
    train, validation, _ = split()
    same = [Examples(one.inputs, np.ones_like(one.labels)) for one in (train, validation)]
    with pytest.raises(ProbeError, match="constant"):
        load(kind).fit(*same)


Tensors = dict[str, NDArray[np.float32]]


def without_last(tensors: Tensors) -> Tensors:
    return dict(list(tensors.items())[:-1])


def one_too_many(tensors: Tensors) -> Tensors:
    return {**tensors, "another": np.zeros(1, dtype=np.float32)}


def one_longer(tensors: Tensors) -> Tensors:
    return {name: np.concatenate([tensor, tensor[:1]]) for name, tensor in tensors.items()}


def one_flatter(tensors: Tensors) -> Tensors:
    return {name: tensor.reshape(1, *tensor.shape) for name, tensor in tensors.items()}


@every_kind
@pytest.mark.parametrize("spoil", [without_last, one_too_many, one_longer, one_flatter])
def test_tensors_that_do_not_fit_are_refused(kind: str, spoil: Callable[[Tensors], Tensors], tmp_path: Path) -> None:
    probe = fitted(kind, "regression")[0].probe
    save_artifact(tmp_path / "a", card_of(probe), probe)
    weights = tmp_path / "a/probe.safetensors"
    save_file(spoil(load_file(weights)), weights)
    with pytest.raises(ProbeError, match=r"tensor|shape"):
        load_artifact(tmp_path / "a", verify=False)


@every_kind
def test_each_tensor_alone_of_another_shape_is_refused(kind: str, tmp_path: Path) -> None:
    probe = fitted(kind, "regression")[0].probe
    save_artifact(tmp_path / "a", card_of(probe), probe)
    weights = tmp_path / "a/probe.safetensors"
    tensors = load_file(weights)
    for name, tensor in tensors.items():
        save_file({**tensors, name: np.concatenate([tensor, tensor[:1]])}, weights)
        with pytest.raises(ProbeError, match="shape"):
            load_artifact(tmp_path / "a", verify=False)


@every_kind
def test_a_wrong_card_is_refused(kind: str, tmp_path: Path) -> None:
    probe = fitted(kind, "regression")[0].probe
    site = probe.site
    if site is None:
        sites = [Site(layer=1, position=-1), Site(layer=1, position=None)]
    elif site.position is None:
        sites = [None, Site(layer=1, position=-1)]
    else:
        sites = [None, Site(layer=1, position=None)]
    cards = [card_of(probe, site=other) for other in sites]
    if site is not None:
        cards += [card_of(probe, d_model=None), card_of(probe, d_model=13)]
    files = card_of(probe).files
    other_files = [name for name in files if name != "vocabulary.json"]
    cards.append(card_of(probe, files=other_files if other_files != files else [*files, "vocabulary.json"]))
    for wrong in cards:
        save_artifact(tmp_path / "a", wrong, probe)
        if "vocabulary.json" in wrong.files:
            (tmp_path / "a/vocabulary.json").write_text('["a"]')
        with pytest.raises(ProbeError):
            load_artifact(tmp_path / "a", verify=False)


@pytest.mark.parametrize("layers", [[], [2, 1], [0, 1], "0..2", [1, 1, 2]])
def test_an_mlp_says_which_layers_it_reads(layers: object, tmp_path: Path) -> None:
    probe = fitted("mlp", "regression")[0].probe
    card = card_of(probe, site=Site(layer=2, position=-1), parameters={"next_token": True, "layers": layers})
    save_artifact(tmp_path / "a", card, probe)
    with pytest.raises(ProbeError, match=r"ascend to that of its site, 2|parameters"):
        load_artifact(tmp_path / "a", verify=False)


def test_text_probes_want_their_pass_as_it_is(tmp_path: Path) -> None:
    length, tfidf = (fitted(kind, "regression")[0].probe for kind in ("length", "tfidf"))
    with_pass = card_of(length).pass_
    for probe, pass_ in ((length, None), (tfidf, with_pass)):
        save_artifact(tmp_path / "a", card_of(probe, **{"pass": pass_}), probe)
        with pytest.raises(ProbeError, match="pass"):
            load_artifact(tmp_path / "a", verify=False)


def test_the_card_is_json_that_reads_back(tmp_path: Path) -> None:
    for kind in KINDS:
        probe = fitted(kind, "classification")[0].probe
        save_artifact(tmp_path / kind, card_of(probe), probe)
        read = load_artifact(tmp_path / kind, verify=False)
        assert read.card == card_of(probe)
        assert json.loads((tmp_path / kind / "config.json").read_text())["kind"] == kind
        assert content(read.probe) == content(probe)
        assert (read.probe.sites, read.probe.next_token) == (probe.sites, probe.next_token)
