"""Probes from Python: how likely is a model to answer a prompt correctly, before it generates anything?

>>> from probes import LocalEngine, load_probe
>>> probe = load_probe("offline/nano_pool/probes/nano-small")  # or "hf://owner/repo/folder@revision"
>>> probe.card.target.model
'nano-small'
>>> engine = LocalEngine([probe], device="cpu")
>>> begin = "What is x at the end? x = 5; x += 2; "
>>> prompts = [begin + "x -= 4; x += 8; x = 7;", begin + "x = 12; x *= 2; x -= 3; x += 9; x -= 7;"]
>>> scores = engine.score(engine.render(prompts))  # texts, or conversations in OpenAI's form
>>> easy, hard = scores.success[:, 0]  # (prompts, probes), calibrated
>>> bool(easy > 0.9 > 0.5 > hard)
True
>>> bool(scores.activation_percentile[0, 0] < 99)  # a prompt like those that the probe was trained on
True
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probes.engine.local import LocalEngine
    from probes.reference import load_probe

__all__ = ["LocalEngine", "load_probe"]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: the gateway's parts import modules of this package one by one, and stay small.
    if name == "load_probe":
        from probes.reference import load_probe

        return load_probe
    if name == "LocalEngine":
        from probes.engine.local import LocalEngine

        return LocalEngine
    raise AttributeError(f"module 'probes' has no attribute {name!r}")
