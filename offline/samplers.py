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
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """One per URL."""
    engine_args: tuple[str, ...] = ()
    """vLLM's command line, for in-process vLLM."""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Environment of in-process vLLM."""
    system_prompt: str | None = None
    """Stands before the benchmark's own, if that has one."""
    prompt_suffix: str = ""
    """Appended to the problem as it stands."""

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
    truncated: list[bool]
    """(k,): whether max_tokens, or the context's end, cut the answer off."""

    @property
    def key(self) -> Key:
        return self.arm, self.split, self.problem_id


Record = Callable[[Sample], None]


@dataclass(frozen=True)
class Limits:
    """What endpoints are asked to bear, and we of them."""

    concurrency: int = 32
    """Requests at a time, to the endpoints of each model."""
    timeout_s: float = 600.0
    """For one request's answers."""
    patience_s: float = 120.0
    """How long all endpoints of a model may be away in mid-run before the run stops."""


def job_seed(seed: int, problem_id: str) -> int:
    """The sampling seed of one problem, whatever the order and company in which it is sampled.

    Sample i of a job has this seed + i, in vLLM and in our requests alike; hence the spread over 31 bits.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{problem_id}".encode()).digest()[:4], "big") >> 1


def conversation(job: Job, template: str | None) -> list[Message]:
    """The job's messages with its arm's system prompt and suffix.

    An arm's `reasoning_effort` is a request field: OpenAI-compatible servers take it, and vLLM hands it to the chat
    template; gpt-oss's writes "Reasoning: low" into the system message. A template that does not know the field would
    drop it without a word, and all efforts would be one arm: there the same line is put into the system message.

    Args:
        template: the model's chat template, where it is at hand.
    """
    messages = [dict(message) for message in job.messages]
    messages[-1]["content"] += job.arm.prompt_suffix
    system = [] if job.arm.system_prompt is None else [job.arm.system_prompt]
    if "reasoning_effort" in job.arm.fields and not takes_effort(template):
        system.insert(0, f"Reasoning: {job.arm.fields['reasoning_effort']}")
    if system and messages[0]["role"] == "system":
        system.append(messages.pop(0)["content"])
    return [{"role": "system", "content": "\n\n".join(system)}, *messages] if system else messages


def request_fields(arm: SampledArm, template: str | None) -> dict[str, Any]:
    """The arm's fields as an endpoint is sent them; see `conversation`."""
    return {name: value for name, value in arm.fields.items() if name != "reasoning_effort" or takes_effort(template)}


def takes_effort(template: str | None) -> bool:
    """Whether `reasoning_effort` shows in prompts: vLLM also turns it into `enable_thinking`."""
    return template is None or "reasoning_effort" in template or "enable_thinking" in template


def render(tokenizer: Any, arm: SampledArm, messages: Sequence[Message]) -> str:
    """The prompt's text after the model's chat template, as vLLM's server renders it for the arm's fields."""
    kwargs = dict(arm.fields.get("chat_template_kwargs", {}))
    if (effort := arm.fields.get("reasoning_effort")) is not None:
        kwargs = {"enable_thinking": effort != "none", **kwargs, "reasoning_effort": effort}
    text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, **kwargs)
    return text


def local_tokenizer(source: str) -> Any:
    """The model's tokenizer where it is on this machine, else None: nothing is downloaded for a column of text."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        return None
    return tokenizer if tokenizer.chat_template else None
