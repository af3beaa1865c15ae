"""Probes: what they read, how they are fitted, calibrated and kept. `from probes import load_probe, score`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probes.reference import load_probe

__all__ = ["load_probe"]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: the gateway's parts import modules of this package one by one, and stay small.
    if name == "load_probe":
        from probes.reference import load_probe

        return load_probe
    raise AttributeError(f"module 'probes' has no attribute {name!r}")
