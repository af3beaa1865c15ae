"""Harvests what probes are trained on, with the code that serves them, and keeps it: the next arm needs no new pass."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.base import Inputs, Sequences
from probes.card import Pass
from probes.engine.probe_model import ProbeModel, Reading
from probes.fingerprint import fingerprint

FORM = 2
"""Of the cache; another one is not read. 1 had next-token statistics of unscaled logits."""
GB = 10**9
WORTH_SAYING = GB
"""Bytes from which on the user is told what the cache takes."""


def default_cache() -> Path:
    """Where activations are kept, under XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pika" / "activations"


def harvest(
    pass_: Pass,
    prompts: Sequence[Sequence[int]],
    reading: Reading,
    device: str = "auto",
    cache: Path | None = None,
    on_batch: Callable[[int], None] = lambda n: None,
) -> Inputs:
    """All that is to be read of n prompts (token ids); arrays are memory maps where there is a cache.

    Args:
        cache: a folder; what stands there of the same model, prompts and reading is not computed again.
        on_batch: called after each micro-batch with its number of prompts, for progress bars.

    Raises:
        ProbeError: the probe model cannot be loaded, or has no such layer.
        OSError: the cache's disk lacks the space; found out before the model reads a prompt.
    """
    if cache is None:
        return ProbeModel(pass_, reading, device).read(prompts, on_batch)
    folder = cache / _key(pass_, prompts, reading)
    if folder.is_dir():
        on_batch(len(prompts))
        return _load(folder, prompts, reading)
    model = ProbeModel(pass_, reading, device)
    cache.mkdir(parents=True, exist_ok=True)
    needed = _size(prompts, reading, model.d_model)
    if needed > shutil.disk_usage(cache).free:
        raise _no_space(cache, needed, reading)
    if needed >= WORTH_SAYING:
        print(f"activations: {needed / GB:.1f} GB, kept in {cache}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix=".", dir=cache) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        names = iter(["sites", *(f"layer-{layer}" for layer in reading.sequence_layers)])

        def allocate(shape: tuple[int, ...], dtype: type[np.float32]) -> NDArray[Any]:
            file = new / f"{next(names)}.npy"
            try:
                found: NDArray[Any] = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
                    file, mode="w+", dtype=dtype, shape=shape
                )
                _reserve(file)
            except OSError as error:
                raise _no_space(cache, needed, reading) from error
            return found

        inputs = model.read(prompts, on_batch, allocate)
        if inputs.next_token is not None:
            np.save(new / "next_token.npy", inputs.next_token, allow_pickle=False)
        with suppress(OSError):  # somebody else was quicker
            new.rename(folder)
    return _load(folder, prompts, reading)


def _size(prompts: Sequence[Sequence[int]], reading: Reading, d_model: int) -> int:
    """Bytes of all activations."""
    vectors = len(prompts) * len(reading.sites) + sum(map(len, prompts)) * len(reading.sequence_layers)
    return vectors * d_model * np.dtype(np.float32).itemsize


def _reserve(file: Path) -> None:
    """Have the whole file on disk: where a hole of a memory map finds no space, the process is killed."""
    with file.open("r+b") as opened:
        os.posix_fallocate(opened.fileno(), 0, os.fstat(opened.fileno()).st_size)


def _no_space(cache: Path, needed: int, reading: Reading) -> OSError:
    tokens = f", all tokens at {len(reading.sequence_layers)} layers," if reading.sequence_layers else ""
    free = shutil.disk_usage(cache).free
    return OSError(
        f"the activations{tokens} need {needed / GB:.3g} GB in {cache}, where {free / GB:.3g} GB are free: "
        "name a larger disk with --cache, or fewer layers with --layers"
    )


def _load(folder: Path, prompts: Sequence[Sequence[int]], reading: Reading) -> Inputs:
    def array(name: str) -> NDArray[Any]:
        found: NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return found

    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    starts = (np.cumsum(lengths) - lengths).astype(np.int64)
    at_sites = array("sites")
    inputs = Inputs(
        prompt_tokens=lengths,
        activations={site: at_sites[:, i] for i, site in enumerate(reading.sites)},
        sequences={layer: Sequences(array(f"layer-{layer}"), starts, lengths) for layer in reading.sequence_layers},
    )
    return replace(inputs, next_token=np.array(array("next_token"))) if reading.next_token else inputs


def _key(pass_: Pass, prompts: Sequence[Sequence[int]], reading: Reading) -> str:
    folder = Path(pass_.probe_model)
    weights = fingerprint(folder) if folder.is_dir() else None
    sites = [site.model_dump() for site in reading.sites]
    # A folder is known by what it holds, so that it may be moved.
    named = pass_.model_dump(mode="json", exclude=None if weights is None else {"probe_model"})
    facts = [FORM, named, weights, {**asdict(replace(reading, sites=())), "sites": sites}]
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for prompt in prompts:
        total.update(np.array([len(prompt), *prompt], dtype="<i4").tobytes())
    return total.hexdigest()[:32]
