"""The cache of activations: its space is there before a prompt is read, and it is known by what it holds."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from offline import activations
from offline.activations import harvest
from probes.card import Site
from probes.engine.probe_model import ProbeModel, Reading
from probes.prompt import new_pass
from tests.support.probes import NANO_POOL

PROMPTS = [[5, 6, 7 + i % 50] for i in range(600)]
SITES = Reading(tuple(Site(layer=layer, position=-1) for layer in (0, 1, 2)))
TOKENS = Reading(sequence_layers=(0, 1, 2))


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.mark.parametrize("reading", [SITES, TOKENS])
def test_the_space_is_reserved_before_the_model_reads(
    tmp_path: Path, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hole in a memory map for which the disk has no block kills the process."""
    holes: list[int] = []
    forward = ProbeModel._forward

    def watched(self: ProbeModel, prompts: Sequence[Sequence[int]]) -> Any:
        files = [file.stat() for file in tmp_path.rglob("*.npy")]
        holes.append(sum(max(0, file.st_size - 512 * file.st_blocks) for file in files))
        assert files
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
    monkeypatch.setattr(ProbeModel, "_forward", lambda *_: pytest.fail("a prompt was read"))
    # 4 bytes a number, 96 numbers a vector; a vector per prompt or per token, and layer.
    size = "0.000691 GB" if reading is SITES else "0.00207 GB"
    with pytest.raises(
        OSError, match=rf"need {size} in {tmp_path}, .* --cache, or fewer layers with --layers"
    ) as found:
        harvest(new_pass(str(NANO_POOL / "nano-small")), PROMPTS, reading, "cpu", tmp_path)
    assert ("all tokens at 3 layers" in str(found.value)) == (reading is TOKENS)
    assert not list(tmp_path.iterdir())


def test_what_takes_much_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pass_ = new_pass(str(NANO_POOL / "nano-small"))
    harvest(pass_, PROMPTS[:9], SITES, "cpu", tmp_path)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(activations, "WORTH_SAYING", 1000)
    harvest(pass_, PROMPTS[:10], SITES, "cpu", tmp_path)
    assert f"GB, kept in {tmp_path}" in capsys.readouterr().err


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
