"""Prompts that begin alike: the beginning is computed once, and kept as keys and values."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from probes.engine.packing import Ids, Prefix, Span

LEAST = 64
"""Tokens that a prefix must save to be worth its bookkeeping."""
KEPT_TOKENS = 8192
"""Of all prefixes together: some hundred megabytes for a model of some hundred million parameters."""
FAMILIES = 1024
"""Beginnings that are remembered; each holds its last prompt."""


@dataclass
class _Family:
    """Prompts whose first `LEAST` tokens are equal."""

    last: Ids
    prefixes: list[tuple[Ids, Prefix]] = field(default_factory=list)


class Prefixes:
    """Finds what prompts share with those before them.

    A prefix is made when two prompts begin with it: as far as they agree, if that is `LEAST` tokens more than any
    prefix that is there. The first `LEAST` tokens find a prompt's family, then tokens are compared: no hash decides.

    Args:
        make: computes the keys and values of a prefix.
        tail: a prompt's last tokens, which are always computed, as they are read.
    """

    def __init__(self, make: Callable[[Ids], Prefix], tail: int) -> None:
        self._make = make
        self._tail = tail
        self._families: OrderedDict[bytes, _Family] = OrderedDict()
        self._tokens = 0

    def kept(self, prompt: Ids) -> int:
        """How many of the prompt's tokens a prefix holds that is there already."""
        family = self._families.get(prompt[:LEAST].tobytes())
        return 0 if family is None else self._longest(family, prompt)[0]

    def span(self, prompt: Ids) -> Span:
        """What of the prompt is to be computed."""
        if len(prompt) < LEAST + self._tail:
            return Span(prompt)
        beginning = prompt[:LEAST].tobytes()
        family = self._families.get(beginning)
        if family is None:
            self._families[beginning] = _Family(prompt)
            if len(self._families) > FAMILIES:
                self._forget()
            return Span(prompt)
        self._families.move_to_end(beginning)
        reused, best = self._longest(family, prompt)
        agreed = min(_shared(prompt, family.last), len(prompt) - self._tail)
        family.last = prompt
        if agreed >= reused + LEAST and agreed <= KEPT_TOKENS:
            reused, best = agreed, self._make(prompt[:agreed])
            family.prefixes.append((prompt[:agreed].copy(), best))
            self._tokens += agreed
            while self._tokens > KEPT_TOKENS:
                self._forget()
        if best is None or reused < LEAST:
            return Span(prompt)
        return Span(prompt[reused:], best, reused)

    def _longest(self, family: _Family, prompt: Ids) -> tuple[int, Prefix | None]:
        """The prefix that the prompt shares most tokens with, and how many; those that are read are computed."""
        spare = len(prompt) - self._tail
        found = [(min(_shared(prompt, tokens), spare), prefix) for tokens, prefix in family.prefixes]
        return max(found, key=lambda one: one[0], default=(0, None))

    def _forget(self) -> None:
        """The family that was not met for longest; of the one in use, its oldest prefix."""
        if len(self._families) > 1:
            _, family = self._families.popitem(last=False)
            self._tokens -= sum(len(tokens) for tokens, _ in family.prefixes)
        else:
            family = next(iter(self._families.values()))
            self._tokens -= len(family.prefixes.pop(0)[0])


def _shared(one: Ids, other: Ids) -> int:
    """How many tokens both begin with."""
    n = min(len(one), len(other))
    different = one[:n] != other[:n]
    return int(different.argmax()) if different.any() else n
