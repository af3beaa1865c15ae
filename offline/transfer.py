"""How probes do on the test problems of other rollouts: train on one benchmark, test on another."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from offline.evaluate import DataError, Outcomes, read_outcomes
from offline.metrics import measure
from probes.artifact import Artifact
from probes.card import Metrics

Transfer = dict[str, dict[str, Metrics]]
"""By name of the other rollouts and arm."""


def read_others(files: Sequence[Path], arms: list[str], seen: Collection[str]) -> dict[str, Outcomes]:
    """Test problems of other rollouts, by the files' names.

    Args:
        seen: texts of the problems that train or choose the probes.

    Raises:
        DataError: a file cannot be used, or some of its test problems are seen.
    """
    others: dict[str, Outcomes] = {}
    for file in files:
        if file.stem in others:
            raise DataError(f"--test-on: tables would show two files as {file.stem}: rename one")
        outcomes = others[file.stem] = read_outcomes(file, "test", arms)
        leaked = set(outcomes.problems) & set(seen)
        if leaked:
            raise DataError(
                f"{file}: {len(leaked)} of its test problems train or choose the probes, such as {min(leaked)[:60]!r}: "
                "remove them"
            )
    return others


def measure_on(
    others: Mapping[str, Outcomes], artifacts: Mapping[str, Artifact], device: str = "auto", seed: int = 0
) -> Transfer:
    """
    Args:
        artifacts: trained probes by arm, the arms in the order of the outcomes' columns.

    Raises:
        ProbeError: an activation is not a finite number.
    """
    from probes.engine.local import LocalEngine

    engine = LocalEngine(list(artifacts.values()), device)
    transfer: Transfer = {}
    for name, outcomes in others.items():
        success = engine.score(engine.render(outcomes.problems)).success
        transfer[name] = {
            arm: measure(success[:, i], outcomes.success_rate[:, i], f"test of {name}", seed)
            for i, arm in enumerate(artifacts)
        }
    return transfer
