"""Whether a probe is served with what it was trained with. Each check has a name, by which it can be overridden."""

import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import get_args

from probes.base import ProbeError
from probes.card import Check, Pass, ProbeCard
from probes.fingerprint import fingerprint
from probes.prompt import Renderer

logger = logging.getLogger(__name__)

CHECKS: tuple[Check, ...] = get_args(Check)


def check_names(allow: Collection[str]) -> None:
    """
    Raises:
        ProbeError: there is no check of such a name.
    """
    for name in allow:
        if name not in CHECKS:
            raise ProbeError(f"there is no check {name!r} to override: {', '.join(CHECKS)}")


def check_all(card: ProbeCard, served: Pass, allow: Collection[str], renderers: list[Renderer]) -> tuple[Check, ...]:
    """The overridden checks that fail.

    Args:
        served: the pass as it will run; the card's with the probe model resolved, and what the operator changed.
        renderers: taken from and added to.

    Raises:
        ProbeError: a check fails that is not overridden; names what differs and how to go on.
    """
    renderer = next((one for one in renderers if one.pass_ == served), None)
    if renderer is None:
        renderers.append(renderer := Renderer(served))
    failed: dict[Check, None] = {}
    for name, difference in differences(card, served, renderer):
        if name not in allow:
            raise ProbeError(f"{difference}; --allow-mismatch {name} goes on in spite of it")
        logger.warning("allowed mismatch %s: %s", name, difference)
        failed[name] = None
    return tuple(failed)


def warn_of_unverified(card: ProbeCard, served: Pass) -> None:
    """Log where activations are read of a folder's model, and the card does not say how to know it."""
    if card.site is None or card.probe_model_fingerprint is not None or not Path(served.probe_model).is_dir():
        return
    assert card.pass_ is not None
    logger.warning(
        "the card of the probe of arm %r has no fingerprint of %s: that %s is it cannot be verified",
        card.target.arm,
        card.pass_.probe_model,
        served.probe_model,
    )


def differences(card: ProbeCard, served: Pass, renderer: Renderer) -> Iterator[tuple[Check, str]]:
    """The checks that fail, and why; the card has a pass."""
    assert card.pass_ is not None
    trained, arm, model = card.pass_, repr(card.target.arm), served.probe_model
    folder = Path(model)
    if card.probe_model_fingerprint is not None and folder.is_dir():
        if fingerprint(folder) != card.probe_model_fingerprint:
            yield (
                "probe-model",
                f"configuration or weights in {folder} are not those of {trained.probe_model} that the probe of arm "
                f"{arm} was trained with: restore them, or train the probe anew with `pika train`",
            )
    elif not folder.is_dir() and model != trained.probe_model:
        yield "probe-model", f"the probe of arm {arm} was trained with {trained.probe_model}, not with {model}"
    if not folder.is_dir() and served.revision != trained.revision:
        yield (
            "revision",
            f"the probe of arm {arm} was trained with {model} at revision {trained.revision}, not {served.revision}",
        )
    if served.dtype != trained.dtype:
        yield "dtype", f"the probe of arm {arm} was trained on activations in {trained.dtype}, not {served.dtype}"
    recorded = trained.recipe.chat_template_sha256
    if recorded is not None and renderer.chat_template_sha256 != recorded:
        yield (
            "chat-template",
            f"the chat template of {model} is not the one that the probe of arm {arm} was trained with (sha256 "
            f"{renderer.chat_template_sha256[:12]}, the probe's {recorded[:12]}): restore the template or pin the "
            "model's revision, or train the probe anew with `pika train`",
        )
    yield from _tokenizer(card, renderer)


def _tokenizer(card: ProbeCard, renderer: Renderer) -> Iterator[tuple[Check, str]]:
    if card.canary_prompt is None or card.canary_token_ids is None:
        return
    now, then = renderer.tokenize(card.canary_prompt), card.canary_token_ids
    if now != then:
        pairs = enumerate(zip(now, then, strict=False))
        at = next((i for i, pair in pairs if pair[0] != pair[1]), min(len(now), len(then)))
        yield (
            "tokenizer",
            f"the tokenizer of {renderer.pass_.probe_model} splits the canary prompt otherwise than when the probe of "
            f"arm {card.target.arm!r} was trained ({len(now)} tokens, {len(then)} then, the first difference at token "
            f"{at}): restore tokenizer.json or the tokenizers release "
            f"({card.versions.get('tokenizers', 'unknown')} then), or train the probe anew with `pika train`",
        )
