"""`pika bench training`: fitting linear probes at every site, ours against a loop over scikit-learn.

Both sides see the same activations, choose among the same sites and alphas for both labels, score on the same
validation problems, and may use the same threads. Ours is all that `LinearEoi.fit` does, cross-fitting included.
"""

import json
import resource
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

from rich.console import Console
from rich.progress import TimeElapsedColumn
from rich.table import Table

from offline.bench import scikit_sweep, training_data
from offline.bench.servers import one_process
from offline.bench.training_data import TASKS, Data, Shape
from offline.progress import bars
from probes.card import Site
from probes.linear_eoi import ALPHAS, LinearEoi

EXAMPLES = """examples:
  pika bench training            nano and large: about a minute on 2 cores, 5 GB of memory
  pika bench training --quick    nano alone: some seconds

The last line is JSON: ratio (nano) and ratio_large say how many times faster than the loop over scikit-learn,
same_choice whether both chose the same layers, positions and alphas.
"""
NANO = (1500, 375)
"""Training and validation problems."""
LARGE = Shape(train=3200, validation=800, layers=29, positions=5, d_model=1536)
TIMED_SITES = 5
"""Of the large grid's, on which the loop over scikit-learn is timed."""
REPETITIONS = 5
"""Of the nano sweep, alternating; the quickest counts."""

Choice = tuple[int, int, float]
"""Layer, position, alpha."""
OnStep = Callable[[float], None]


@dataclass(frozen=True)
class Measured:
    seconds: float
    choices: list[Choice]
    """By label, then arm."""


@dataclass(frozen=True)
class Comparison:
    name: str
    ours: Measured
    scikit_learn: Measured
    """Seconds scaled to all sites."""
    peak_memory: float | None = None
    """Of our side's whole process, as a multiple of the activations' size."""

    @property
    def ratio(self) -> float:
        return self.scikit_learn.seconds / self.ours.seconds

    @property
    def same_choice(self) -> bool:
        return self.ours.choices == self.scikit_learn.choices


def main(argv: list[str]) -> int:
    parser = ArgumentParser(
        prog="pika bench training",
        description="Fitting linear probes at every site: our sweep against a loop over scikit-learn.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="the nano pool alone")
    parser.add_argument("--seed", type=int, default=0, help="of the random activations")
    args = parser.parse_args(argv)
    with _bar("nano pool: activations, then both sweeps") as on_step:
        comparisons = [nano(*NANO, on_step)]
    if not args.quick:
        with _bar("large: random activations, our sweep, scikit-learn on five sites") as on_step:
            comparisons.append(large(LARGE, args.seed, on_step))
    Console().print(_table(comparisons))
    print(json.dumps(summary(*comparisons)))
    return 0


def nano(train: int, validation: int, on_step: OnStep = lambda share: None) -> Comparison:
    """Real activations, all arms of the nano pool."""
    data = training_data.nano(train, validation)
    on_step(1 / (REPETITIONS + 1))
    ours, theirs = [], []
    for _ in range(REPETITIONS):
        ours.append(measure_ours(data))
        theirs.append(measure_scikit_learn(data))
        on_step(1 / (REPETITIONS + 1))
    shape = f"nano pool: {train} x {len(data.train['regression'].inputs.activations)} sites, 3 arms"
    return Comparison(shape, min(ours, key=lambda one: one.seconds), min(theirs, key=lambda one: one.seconds))


def large(shape: Shape, seed: int, on_step: OnStep = lambda share: None) -> Comparison:
    """Random activations; scikit-learn on a few of the sites, the one that knows among them, its time scaled."""
    sites = shape.sites
    timed = sites[:: max(1, len(sites) // TIMED_SITES)][:TIMED_SITES]
    planted = timed[len(timed) // 2]
    # In a process of its own, so that its peak memory is seen.
    with one_process() as executor:
        ours, peak_bytes, activation_bytes = executor.submit(_ours_alone, shape, seed, planted).result()
    on_step(0.8)
    theirs = measure_scikit_learn(training_data.random(shape, seed, planted, timed))
    on_step(0.2)
    scaled = Measured(theirs.seconds * len(sites) / len(timed), theirs.choices)
    name = f"random: {shape.train} x {len(sites)} sites x {shape.d_model}, 1 arm"
    return Comparison(name, ours, scaled, peak_bytes / activation_bytes)


def measure_ours(data: Data) -> Measured:
    start = perf_counter()
    fits = [fit for task in TASKS for fit in LinearEoi.fit(data.train[task], data.validation[task], task)]
    seconds = perf_counter() - start
    return Measured(seconds, [_choice(fit.probe.site, fit.alpha) for fit in fits])


def measure_scikit_learn(data: Data) -> Measured:
    start = perf_counter()
    found = [
        scikit_sweep.best_site(
            data.train[task], data.validation[task], arm, task, ALPHAS, list(data.train[task].inputs.activations)
        )
        for task in TASKS
        for arm in range(data.train[task].labels.shape[1])
    ]
    return Measured(perf_counter() - start, [_choice(*one) for one in found])


def summary(nano: Comparison, large: Comparison | None = None) -> dict[str, object]:
    """The last line."""
    comparisons = [nano] if large is None else [nano, large]
    return {
        "ratio": round(nano.ratio, 2),
        "ratio_large": None if large is None else round(large.ratio, 2),
        "same_choice": all(one.same_choice for one in comparisons),
        "peak_memory_ratio": None if large is None or large.peak_memory is None else round(large.peak_memory, 3),
        "seconds": {one.name: [round(one.ours.seconds, 3), round(one.scikit_learn.seconds, 3)] for one in comparisons},
    }


def _ours_alone(shape: Shape, seed: int, planted: Site) -> tuple[Measured, int, int]:
    """Also the process' peak memory and the activations' size, in bytes."""
    data = training_data.random(shape, seed, planted)
    measured = measure_ours(data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return measured, peak, data.activation_bytes


def _choice(site: Site | None, alpha: float | None) -> Choice:
    assert site is not None
    assert site.position is not None
    assert alpha is not None
    return site.layer, site.position, float(alpha)


def _table(comparisons: Sequence[Comparison]) -> Table:
    table = Table(title="sweep over all sites x 5 alphas x 2 labels, seconds")
    for column in ("activations", "scikit-learn loop", "ours", "times faster", "same choice", "peak memory"):
        table.add_column(column, justify="left" if column == "activations" else "right")
    for one in comparisons:
        memory = "" if one.peak_memory is None else f"{one.peak_memory:.2f} x activations"
        times = f"{one.scikit_learn.seconds:.2f}", f"{one.ours.seconds:.2f}", f"{one.ratio:.1f}"
        table.add_row(one.name, *times, "yes" if one.same_choice else "NO", memory)
    return table


@contextmanager
def _bar(what: str) -> Iterator[OnStep]:
    with bars(TimeElapsedColumn()) as progress:
        task = progress.add_task(what, total=1.0)
        yield lambda share: progress.advance(task, share)
