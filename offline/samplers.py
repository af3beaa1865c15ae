"""What rollouts are sampled with: the jobs, the samples, and what every sampler shares.

A sampler takes jobs in any order and hands each finished one to `record` at once, so that little is lost when a run
is interrupted.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from offline.benchmarks.base import Message

Key = tuple[str, str, str]
"""(arm, split, problem_id)"""


class SamplingError(Exception):
    """A model cannot be loaded or reached, or refuses a request; the message names the fix."""


@dataclass(frozen=True)
class SampledArm:
    """An arm as rollouts sample it."""

    name: str
    model: str
    """The served model's name."""
    reference: str
    """The weights, as the configuration names them."""
    source: str
    """The weights: an absolute path or a Hub id."""
    max_context_tokens: int
    fields: Mapping[str, Any]
    """Request fields: the arm's defaults and request, with temperature and max_tokens."""
    urls: tuple[str, ...] = ()
    """Base URLs of the replicas, ending in /v1."""
    api_keys: tuple[str, ...] = ()
    """One per URL."""
    engine_args: tuple[str, ...] = ()
    """vLLM's command line, for in-process vLLM."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment of in-process vLLM."""

    @property
    def max_tokens(self) -> int:
        return int(self.fields["max_tokens"])


@dataclass(frozen=True)
class Job:
    """k answers of one arm to one problem."""

    arm: SampledArm
    split: str
    problem_id: str
    messages: Sequence[Message]
    seed: int


@dataclass(frozen=True)
class Sample:
    """What came of a job."""

    arm: str
    split: str
    problem_id: str
    formatted_prompt: str
    solutions: list[str]
    """(k,)"""
    input_tokens: int
    """Of the prompt, once."""
    output_tokens: list[int]
    """(k,), end tokens included."""

    @property
    def key(self) -> Key:
        return self.arm, self.split, self.problem_id


Record = Callable[[Sample], None]


def job_seed(seed: int, problem_id: str) -> int:
    """The sampling seed of one problem, whatever the order and company in which it is sampled.

    Sample i of a job has this seed + i, in vLLM and in our requests alike; hence the spread over 31 bits.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{problem_id}".encode()).digest()[:4], "big") >> 1


def render(tokenizer: Any, arm: SampledArm, messages: Sequence[Message]) -> str:
    """The prompt's text after the model's chat template, as vLLM's server renders it for the arm's fields."""
    kwargs = dict(arm.fields.get("chat_template_kwargs", {}))
    if "reasoning_effort" in arm.fields:
        kwargs["reasoning_effort"] = arm.fields["reasoning_effort"]
    text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, **kwargs)
    return text
