"""What fitting holds in memory: activations are large, and mapped from a file."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline.fit import finish, fit_arms, fit_baselines
from offline.material import Material
from offline.training_set import ArmRollouts, TrainingSet
from probes.base import Inputs, Sequences, load
from probes.card import MeanTokens, Site

N, SITES, D = 1200, 48, 96
SPLITS = {"train": 800, "validation": 200, "test": 200}


def problems(folder: Path, shuffled: bool) -> tuple[TrainingSet, Inputs]:
    """Two arms, whose rates one site tells; 22 MB of activations in a memory map."""
    rng = np.random.default_rng(0)
    np.save(folder / "activations.npy", rng.normal(size=(N, SITES, D)).astype(np.float32))
    at_sites = np.load(folder / "activations.npy", mmap_mode="r")
    ease = np.array(at_sites[:, 7, 0])
    rates = 1 / (1 + np.exp(-np.stack([ease, ease + 1], axis=1)))
    split = np.repeat(list(SPLITS), list(SPLITS.values()))
    texts = [f"{number} is {number % 7} and {number % 11}" for number in range(N)]
    arms = tuple(ArmRollouts(name, name, 8, 0.7, 64, MeanTokens(input=1, output=2)) for name in "ab")
    data = TrainingSet(
        texts, rng.permutation(split) if shuffled else split, rates, (rates > 0.5).astype(float),
        rng.integers(1, 50, (N, 2)).astype(float), arms, "sums", "",
    )  # fmt: skip
    sites = [Site(layer=i // 4, position=-4 + i % 4) for i in range(SITES)]
    activations = {site: at_sites[:, i] for i, site in enumerate(sites)}
    return data, Inputs(texts, rng.integers(5, 50, N), activations)


def peak(work: Callable[[], Any]) -> tuple[Any, int]:
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shuffled", [False, True])
def test_what_a_probe_does_not_read_is_not_copied(tmp_path: Path, shuffled: bool) -> None:
    data, inputs = problems(tmp_path, shuffled)
    size = (tmp_path / "activations.npy").stat().st_size
    sites = tuple(inputs.activations)
    some = Inputs(inputs.texts, inputs.prompt_tokens, {site: inputs.activations[site] for site in sites[6:8]})
    fits = fit_arms(data, some, load("linear_eoi"), "success_rate")
    _, own = peak(lambda: fit_baselines(data, Inputs(inputs.texts, inputs.prompt_tokens)))
    baselines, held = peak(lambda: fit_baselines(data, inputs))
    assert held < own + 0.05 * size
    material = Material(inputs, None, sites, sites[5], {})
    done, held = peak(lambda: finish(data, 0, material, fits[0], baselines, "success_rate"))
    # All sites' test rows alone would be a sixth.
    assert held < 0.12 * size
    assert done.fit.probe.site == sites[7]
    assert done.d_model == D
    assert done.statistics is not None


def test_splits_side_by_side_are_views_and_others_the_same_rows(tmp_path: Path) -> None:
    for shuffled in (False, True):
        data, inputs = problems(tmp_path, shuffled)
        for split in SPLITS:
            mask = data.rows(split)
            found = inputs.rows(mask)
            assert found.texts == [text for text, there in zip(inputs.texts, mask, strict=True) if there]
            for site, values in inputs.activations.items():
                assert np.shares_memory(found.activations[site], values) != shuffled
                np.testing.assert_array_equal(found.activations[site], values[mask])


def test_rows_in_another_order_keep_it() -> None:
    values = np.arange(10, dtype=np.float32)[:, None]
    lengths = np.ones(10, dtype=np.int64)
    inputs = Inputs(
        [str(i) for i in range(10)],
        activations={Site(layer=1, position=-1): values},
        sequences={1: Sequences(values, np.arange(10), lengths)},
    )
    for rows in ([2, 3, 4], [4, 3, 2], [-2, -1, 0], [3, 3, 4], [5], []):
        found = inputs.rows(np.array(rows, dtype=np.int64))
        assert found.activations[Site(layer=1, position=-1)][:, 0].tolist() == [row % 10 for row in rows]
        assert list(found.texts) == [str(row % 10) for row in rows]
        assert found.sequences[1].starts.tolist() == [row % 10 for row in rows]


def test_too_few_validation_prompts_leave_the_statistics_out(tmp_path: Path) -> None:
    data, inputs = problems(tmp_path, shuffled=False)
    few = np.r_[0:880, 1000:N]  # 80 of validation
    rows = TrainingSet(
        data.problems, data.split[few], data.success_rate[few], data.majority_vote_is_correct[few],
        data.output_tokens[few], data.arms, "sums", "",
    )  # fmt: skip
    some = Inputs(
        [inputs.texts[i] for i in few],
        None,
        {site: values[few] for site, values in list(inputs.activations.items())[6:8]},
    )
    sites = tuple(some.activations)
    fits = fit_arms(rows, some, load("linear_eoi"), "success_rate")
    done = finish(rows, 0, Material(some, None, sites, sites[0], {}), fits[0], {}, "success_rate")
    assert done.statistics is None
    assert not any(name.startswith("statistics") for name in done.beside)
    assert done.d_model == D
