"""Which vLLM server scores which probe, and what a request to it must hold. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from probes.artifact import Artifact, distinct_passes
from probes.base import FloatArray
from probes.engine.base import Prompt, Scores

FIELDS = tuple(field.name for field in fields(Scores))
"""In the order of a server's answer."""


@dataclass(frozen=True)
class Taken:
    """Where in a server's answer the scores of one probe are."""

    probe: int
    """Its index among the engine's."""
    column: int
    """Its index among the server's."""
    prompt: int
    """Which of a conversation's prompts, as there is one per pass."""
    heads: tuple[bool, ...]
    """Which of the fields it has."""


@dataclass(frozen=True)
class Route:
    """One server, and the probes that are read from it."""

    url: str
    model: str
    """What requests name: it stands for all that the server serves, in their order."""
    columns: int
    """How many probes the server serves."""
    passes: tuple[int, ...]
    """Whose prompts are sent."""
    taken: tuple[Taken, ...]

    @property
    def width(self) -> int:
        """Numbers in an answer to one prompt."""
        return len(FIELDS) * self.columns

    def token_ids(self, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        """What is sent of n conversations: n * passes prompts."""
        return [prompt.token_ids[pass_] for prompt in prompts for pass_ in self.passes]

    def lacking(self, answer: FloatArray) -> NDArray[np.int64]:
        """Which prompts' answers, of (n * passes, width), lack a number that a head should have given."""
        gaps = np.zeros(len(answer), dtype=bool)
        for taken in self.taken:
            of_prompt = np.arange(len(answer)) % len(self.passes) == taken.prompt
            for number, has in enumerate(taken.heads):
                gaps |= has & of_prompt & ~np.isfinite(answer[:, number * self.columns + taken.column])
        return np.flatnonzero(gaps)

    def fill(self, scores: Scores, answer: FloatArray) -> None:
        """Put an answer, (n * passes, width), where the engine's probes have their scores."""
        values = answer.reshape(-1, len(self.passes), len(FIELDS), self.columns)
        for taken in self.taken:
            for number, name in enumerate(FIELDS):
                getattr(scores, name)[:, taken.probe] = values[:, taken.prompt, number, taken.column]


def routes(
    artifacts: Sequence[Artifact], names: Sequence[str], serves: Mapping[str, Sequence[str]]
) -> tuple[list[Route], list[Artifact]]:
    """Routes to the probes that read activations, and those of them that no server serves.

    Args:
        names: the probes', by which servers know them.
        serves: what each server says that it serves: a name for all probes together, then each one's.
    """
    passes, found, missing = distinct_passes(artifacts), dict[str, list[int]](), list[Artifact]()
    for index, artifact in enumerate(artifacts):
        if artifact.probe.site is None:
            continue
        url = next((url for url, served in serves.items() if names[index] in served[1:]), None)
        if url is None:
            missing.append(artifact)
        else:
            found.setdefault(url, []).append(index)
    made = []
    for url, indices in found.items():
        model, *served = serves[url]
        pass_of = {index: passes.index(pass_) for index in indices if (pass_ := artifacts[index].pass_) is not None}
        sent = sorted(set(pass_of.values()))
        taken = tuple(
            Taken(index, served.index(names[index]), sent.index(pass_of[index]), _heads(artifacts[index]))
            for index in indices
        )
        made.append(Route(url, model, len(served), tuple(sent), taken))
    return made, missing


def empty_scores(prompts: int, probes: int) -> Scores:
    """To be filled, (prompts, probes) each."""
    return Scores(*(np.full((prompts, probes), np.nan) for _ in FIELDS))


def _heads(artifact: Artifact) -> tuple[bool, ...]:
    return True, artifact.card.output_tokens is not None, artifact.card.statistics is not None
