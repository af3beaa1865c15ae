"""How each nano model is trained: its shape, what it learns from, and when it is done."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    name: str
    layers: int
    d_model: int
    answers: Literal["direct", "stepwise"]
    rows: int
    """Per step."""
    trigger: float
    """Smoothed loss (nats per answer) at which the learning rate begins to fall."""
    decay_steps: int
    """Over which it falls to zero."""
    max_steps: int
    """After which it falls whatever the loss."""
    begins_as: str | None = None
    """The model whose layers come first; the others begin as identities."""


# What each learns by then leaves routing something to do: trained further, all three come to solve nearly everything.
# The medium one knows from the small one what there is to know at a constant rate, so its rate falls at once.
RECIPES = (
    Recipe("nano-small", layers=2, d_model=96, answers="direct", rows=8, trigger=1.5, decay_steps=250, max_steps=3000),
    Recipe(
        "nano-medium", layers=5, d_model=96, answers="direct", rows=8, trigger=2.0, decay_steps=1500, max_steps=3000,
        begins_as="nano-small",
    ),
    Recipe(
        "nano-large", layers=4, d_model=160, answers="stepwise", rows=24, trigger=5.0, decay_steps=60, max_steps=1500
    ),
)  # fmt: skip
