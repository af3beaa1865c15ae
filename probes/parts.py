"""What the kinds of probes share: whether inputs and artifacts hold what a kind needs."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from probes.base import FloatArray, ProbeError


def check_tensors(
    kind: str, tensors: Mapping[str, NDArray[np.float32]], shapes: Mapping[str, tuple[int | None, ...]]
) -> None:
    """Whether an artifact has exactly these tensors; a size of None may be anything but 0.

    Raises:
        ProbeError: names what is missing, too many, or of another shape.
    """
    if set(tensors) != set(shapes):
        found = ", ".join(sorted(tensors)) or "none"
        raise ProbeError(f"a probe of kind {kind} has the tensors {', '.join(shapes)}; found {found}")
    for name, wanted in shapes.items():
        shape = tensors[name].shape
        if len(shape) != len(wanted) or any(
            size == 0 or (want is not None and size != want) for size, want in zip(shape, wanted, strict=True)
        ):
            form = ", ".join("any" if size is None else str(size) for size in wanted)
            raise ProbeError(f"{kind}: tensor {name} has shape {list(shape)}, not [{form}]")


def check_labels(train: FloatArray, validation: FloatArray) -> None:
    """Whether there is something to learn from labels, (n, arms) each.

    Raises:
        ProbeError: there are none, or an arm's training labels are constant.
    """
    if not len(train) or not len(validation):
        raise ProbeError("there are no problems to fit or to choose on: give the data splits train and validation")
    if (np.ptp(train, axis=0) == 0).any():
        raise ProbeError("an arm's labels are constant on the training problems, so nothing can be learnt: sample more")


def standardisation(values: FloatArray | NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and deviation of each column, (n, d) -> (d,), (d,); columns that do not vary have deviation 1."""
    mean, deviation = mean_and_deviation(values)
    return mean.astype(np.float32), deviation.astype(np.float32)


def mean_and_deviation(values: FloatArray | NDArray[np.float32]) -> tuple[FloatArray, FloatArray]:
    """The same in double precision, also of one column: (n,) -> (), ()."""
    mean, deviation = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
    # What is constant but for rounding must not be blown up.
    return mean, np.where(deviation <= 1e-6 * np.abs(mean) + 1e-12, 1.0, deviation)
