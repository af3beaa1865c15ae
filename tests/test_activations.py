"""The cache of activations: its space is there before a prompt is read, and it is known by what it holds."""

import os
import re
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from offline import activations
from offline.activations import harvest
from probes.base import Inputs
from probes.card import Dtype, Site
from probes.engine.probe_model import ProbeModel
from probes.engine.reading import Reading
from probes.prompt import new_pass
from tests.support.harvest import harvest as in_a_process
from tests.support.probes import NANO_POOL

PROMPTS = [[5, 6, 7 + i % 50] for i in range(600)]
SITES = Reading(tuple(Site(layer=layer, position=-1) for layer in (0, 1, 2)))
TOKENS = Reading(sequence_layers=(0, 1, 2))


TRIAL = 2 * activations.TRIAL_PROMPTS
"""Prompts that tell how long it takes."""


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def watch(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[int]]:
    """The prompts that the model reads from now on."""
    read: list[Sequence[int]] = []
    forward = ProbeModel._forward

    def watched(self: ProbeModel, prompts: Sequence[Sequence[int]]) -> Any:
        read.extend(prompts)
        return forward(self, prompts)

    monkeypatch.setattr(ProbeModel, "_forward", watched)
    return read


def same(one: Inputs, other: Inputs) -> bool:
    return (
        all(np.array_equal(one.activations[site], values) for site, values in other.activations.items())
        and all(np.array_equal(one.sequences[layer].values, of.values) for layer, of in other.sequences.items())
        and (other.next_token is None or np.array_equal(one.next_token, other.next_token))
    )


@pytest.mark.parametrize("reading", [SITES, TOKENS])
def test_the_space_is_reserved_before_the_model_reads(
    tmp_path: Path, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hole in a memory map for which the disk has no block kills the process."""
    holes: list[int] = []
    forward = ProbeModel._forward

    def watched(self: ProbeModel, prompts: Sequence[Sequence[int]]) -> Any:
        if files := [file.stat() for file in tmp_path.rglob("*.npy")]:  # there are none yet when time is estimated
            holes.append(sum(max(0, file.st_size - 512 * file.st_blocks) for file in files))
        return forward(self, prompts)

    monkeypatch.setattr(ProbeModel, "_forward", watched)
    harvest(new_pass(str(NANO_POOL / "nano-small")), PROMPTS, reading, "cpu", tmp_path)
    assert holes[0] == 0


@pytest.mark.parametrize("found_out", ["beforehand", "while reserving"])
@pytest.mark.parametrize("reading", [SITES, TOKENS])
def test_a_full_disk_is_named_before_the_model_reads(
    tmp_path: Path, found_out: str, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if found_out == "beforehand":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**6, 10**6 - 1000, 1000))
    else:
        monkeypatch.setattr(os, "posix_fallocate", full)
    read = watch(monkeypatch)
    # 4 bytes a number, 96 numbers a vector; a vector per prompt or per token, and layer.
    size = "0.000691 GB" if reading is SITES else "0.00207 GB"
    with pytest.raises(
        OSError, match=rf"need {size} in {tmp_path}, .* --cache, or fewer layers with --layers"
    ) as found:
        harvest(new_pass(str(NANO_POOL / "nano-small")), PROMPTS, reading, "cpu", tmp_path)
    assert ("all tokens at 3 layers" in str(found.value)) == (reading is TOKENS)
    assert not list(tmp_path.iterdir())
    assert len(read) == 0 if found_out == "beforehand" else len(read) <= TRIAL


def test_size_and_time_are_said_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read = watch(monkeypatch)
    said: list[tuple[int, str]] = []
    pass_ = new_pass(str(NANO_POOL / "nano-small"))
    harvest(pass_, PROMPTS, SITES, "cpu", tmp_path, lambda n: said.append((len(read), capsys.readouterr().err)))
    assert re.fullmatch(rf"activations: 0.000691 GB in {tmp_path}, about \d+ (s|min)\n", said[0][1])
    # Whatever model, it is told from a few prompts.
    assert said[-1][0] <= len(PROMPTS) + TRIAL


def test_a_second_harvest_reads_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = replace(SITES, sequence_layers=(1,), next_token=True)
    pass_ = new_pass(str(NANO_POOL / "nano-small"))
    direct = ProbeModel(pass_, reading, "cpu").read(PROMPTS)
    first = harvest(pass_, PROMPTS, reading, "cpu", tmp_path)
    monkeypatch.setattr(activations, "ProbeModel", lambda *_: pytest.fail("the probe model was loaded"))
    advanced: list[int] = []
    second = harvest(pass_, PROMPTS, reading, "cpu", tmp_path, advanced.append)
    assert sum(advanced) == len(PROMPTS)
    for kept in (first, second):
        assert same(kept, direct)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_kept_is_what_the_model_computed(tmp_path: Path, dtype: Dtype) -> None:
    """Single precision holds the other types' numbers as they are; another type is another pass."""
    pass_ = new_pass(str(NANO_POOL / "nano-small"), dtype)
    kept = harvest(pass_, PROMPTS[:20], SITES, "cpu", tmp_path)
    assert same(kept, ProbeModel(pass_, SITES, "cpu").read(PROMPTS[:20]))
    values = torch.tensor(np.stack(list(kept.activations.values())))
    assert torch.equal(values, values.to(getattr(torch, dtype)).float())
    harvest(new_pass(str(NANO_POOL / "nano-small"), "float16"), PROMPTS[:20], SITES, "cpu", tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_killed_harvest_goes_on_and_ends_as_if_undisturbed(tmp_path: Path) -> None:
    model, n = NANO_POOL / "nano-small", 2500
    _, undisturbed, _ = in_a_process(model, tmp_path / "whole", n)
    rng = np.random.default_rng()
    total = 0
    for share in rng.uniform(0.1, 0.6, size=2):
        at = int(share * undisturbed)
        code, _, _ = in_a_process(model, tmp_path / "killed", n, at)
        assert code == -signal.SIGKILL
        assert all(folder.name.startswith(".") for folder in (tmp_path / "killed").iterdir())
        total += at
    code, rest, _ = in_a_process(model, tmp_path / "killed", n)
    assert code == 0
    # Nothing that was on disk is read again: but for the estimates' prompts, each batch is read once.
    assert total + rest <= undisturbed + 2 * 3
    [whole], [killed] = ([*(tmp_path / name).iterdir()] for name in ("whole", "killed"))
    assert whole.name == killed.name
    for file in whole.glob("*.npy"):
        assert file.read_bytes() == (killed / file.name).read_bytes()


def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """Four times as many prompts: 130 MB more of activations."""
    _, _, small = in_a_process(NANO_POOL / "nano-small", tmp_path, 3000)
    _, _, large = in_a_process(NANO_POOL / "nano-small", tmp_path, 12_000)
    stored = [sum(file.stat().st_size for file in folder.iterdir()) for folder in tmp_path.iterdir()]
    assert max(stored) - min(stored) > 130e6
    assert large - small < 80_000  # KiB


def test_a_probe_model_may_move_but_not_change(tmp_path: Path) -> None:
    first, second = tmp_path / "here", tmp_path / "there"
    shutil.copytree(NANO_POOL / "nano-small", first)
    before = harvest(new_pass(str(first)), PROMPTS[:5], SITES, "cpu", tmp_path / "cache")
    first.rename(second)
    again = harvest(new_pass(str(second)), PROMPTS[:5], SITES, "cpu", tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    for site in SITES.sites:
        np.testing.assert_array_equal(again.activations[site], before.activations[site])
    other = new_pass(str(NANO_POOL / "nano-medium"))
    harvest(other, PROMPTS[:5], SITES, "cpu", tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2
