"""Harvests what probes are trained on, with the code that serves them, and keeps it: the next arm needs no new pass."""

import fcntl
import hashlib
import json
import mmap
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TextIO, cast

import numpy as np
from numpy.typing import NDArray

from probes.base import Inputs, ProbeError, Sequences
from probes.card import Pass
from probes.engine.probe_model import ProbeModel
from probes.engine.reading import Reading
from probes.fingerprint import fingerprint

FORM = 3
"""Of the cache; another one is not read. 1 had next-token statistics of unscaled logits. To be raised as well when
prompts are divided into other micro-batches: an unfinished harvest counts them."""
GB = 10**9
SYNC_S = 10.0
"""What a harvest that is killed loses at most."""
TRIAL_PROMPTS = 64
PROGRESS = "progress"


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
        cache: a folder; what stands there of the same model, prompts and reading is not computed again. A harvest
            that was killed goes on where it was; what is unfinished has a name with a dot in front.
        on_batch: called after each micro-batch with its number of prompts, for progress bars.

    Raises:
        ProbeError: the probe model cannot be loaded, or has no such layer.
        OSError: the cache's disk lacks the space; found out before more than a few prompts are read.
    """
    if cache is None:
        return ProbeModel(pass_, reading, device).read(prompts, on_batch)
    key = _key(pass_, prompts, reading)
    folder, unfinished = cache / key, cache / f".{key}"
    if not folder.is_dir():
        unfinished.mkdir(parents=True, exist_ok=True)
        with (unfinished / PROGRESS).open("a+") as progress:
            fcntl.flock(progress, fcntl.LOCK_EX)  # one process reads a model's prompts; others wait for it
            if not folder.is_dir():
                try:
                    _harvest(ProbeModel(pass_, reading, device), prompts, unfinished, progress, on_batch)
                except (OSError, ProbeError):
                    shutil.rmtree(unfinished)  # room on a full disk, say
                    raise
                unfinished.rename(folder)
                return _load(folder, prompts, reading)
        shutil.rmtree(unfinished, ignore_errors=True)
    on_batch(len(prompts))
    return _load(folder, prompts, reading)


@dataclass(frozen=True)
class Forecast:
    """What a harvest takes."""

    bytes: int
    seconds: float
    cached: bool
    """It is there: nothing is to be read."""


def forecast(
    pass_: Pass, prompts: Sequence[Sequence[int]], reading: Reading, device: str = "auto", cache: Path | None = None
) -> Forecast:
    """Of `harvest` with the same arguments. Some of the prompts are read for it; nothing is written.

    Raises:
        ProbeError: see `harvest`.
    """
    folder = None if cache is None else cache / _key(pass_, prompts, reading)
    if folder is not None and folder.is_dir():
        return Forecast(sum(file.stat().st_size for file in folder.iterdir()), 0.0, cached=True)
    model = ProbeModel(pass_, reading, device)
    return Forecast(_size(prompts, reading, model.d_model), _trial(model, prompts), cached=False)


def _harvest(
    model: ProbeModel, prompts: Sequence[Sequence[int]], folder: Path, progress: TextIO, on_batch: Callable[[int], None]
) -> None:
    """Read what is not there yet.

    Args:
        progress: holds the number of micro-batches that are on disk.
    """
    progress.seek(0)
    done = int(progress.read() or 0)
    reading, cache = model.reading, folder.parent
    needed = _size(prompts, reading, model.d_model)
    if not done and needed > shutil.disk_usage(cache).free:
        raise _no_space(cache, needed, reading)
    seconds = _trial(model, prompts)
    again = f"; going on after {done} micro-batches of it" if done else ""
    print(f"activations: {needed / GB:.3g} GB in {cache}, about {_duration(seconds)}{again}", file=sys.stderr)
    layers = [f"layer-{layer}" for layer in reading.sequence_layers]
    names = iter(["sites", *layers, "next_token"])
    maps: list[np.memmap[Any, Any]] = []

    def allocate(shape: tuple[int, ...], dtype: type[np.float32] | type[np.float64]) -> NDArray[Any]:
        file = folder / f"{next(names)}.npy"
        try:
            mode: Literal["r+", "w+"] = "r+" if done else "w+"
            found: np.memmap[Any, Any] = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]  # NumPy leaves it untyped
                file, mode=mode, dtype=dtype, shape=shape
            )
            _reserve(file)
        except OSError as error:
            raise _no_space(cache, needed, reading) from error
        maps.append(found)
        return found

    synced, batches = time.monotonic(), 0

    def count(n: int) -> None:
        nonlocal synced, batches
        batches += 1
        if batches > done:
            _let_go(maps)
            if time.monotonic() - synced >= SYNC_S:
                _sync(maps, progress, batches)
                synced = time.monotonic()
        on_batch(n)

    model.read(prompts, count, allocate, skip=done)
    _sync(maps, progress, batches)


def _trial(model: ProbeModel, prompts: Sequence[Sequence[int]]) -> float:
    """Seconds that all prompts will take, from a few of them spread over all."""
    some = prompts[:: max(1, len(prompts) // TRIAL_PROMPTS)]
    model.read(some[:1])  # the first pass is slow
    started = time.monotonic()
    model.read(some)
    return (time.monotonic() - started) * sum(map(len, prompts)) / sum(map(len, some))


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _let_go(maps: Sequence["np.memmap[Any, Any]"]) -> None:
    """Drop what was written from this process's memory: the system has it, and writes it to disk in its own time."""
    for array in maps:
        cast(mmap.mmap, array.base).madvise(mmap.MADV_DONTNEED)


def _sync(maps: Sequence["np.memmap[Any, Any]"], progress: TextIO, batches: int) -> None:
    """First the rows, then that they are there."""
    for array in maps:
        array.flush()
    progress.truncate(0)
    progress.write(str(batches))
    progress.flush()
    os.fsync(progress.fileno())


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
    read = {"sites": sites, "sequence_layers": reading.sequence_layers, "next_token": reading.next_token}
    facts = [FORM, named, weights, read]
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for prompt in prompts:
        total.update(np.array([len(prompt), *prompt], dtype="<i4").tobytes())
    return total.hexdigest()[:32]
