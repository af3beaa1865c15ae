"""The section of a configuration file about what reads prompts. pydantic alone."""

from typing import Literal, Self

from pydantic import Field, model_validator

from probes.card import Check, Dtype
from probes.engine.address import check_url
from server.sections.base import Section, check_http


class Queue(Section):
    """What may wait to be scored; more is answered as `when_unavailable` says."""

    prompts: int = Field(default=512, gt=0)
    """How many."""
    tokens: int = Field(default=200_000, gt=0)
    """Of all of them."""


class Engine(Section):
    """What reads prompts with the probe models, which follow from the arms' probes."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """`auto`, `cpu`, `cuda` or `cuda:N`; `auto` takes a GPU where there is one."""
    kind: Literal["process", "remote", "vllm"] = "process"
    """A process of the gateway's own; `pika engine` at `url`; a vLLM server that `pika probe-server` started there."""
    url: str | list[str] | None = None
    """tcp://HOST:PORT or unix:///PATH of `pika engine`; http(s)://HOST:PORT of a vLLM server, or several, one for each
    probe model."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the secret which that engine asks for."""
    deadline_ms: float = Field(default=1000, gt=0, le=600_000)
    """A prompt not scored by then is answered as `when_unavailable` says."""
    queue: Queue = Queue()
    cache_prompts: int = Field(default=16_384, ge=0)
    """Of so many prompts the scores are kept; an equal prompt is not computed again."""
    when_unavailable: str | Literal[503] = 503
    """An arm, or 503."""
    probe_models: dict[str, str] = {}
    """Instead of a probe's own probe model: a folder, or `owner/name@revision`. The key is the probe model as the
    probe's card names it, or the last component of that: `nano-medium` for `../../nano-medium`. Probes from the Hub
    whose card names a folder need it."""
    dtype: Dtype | None = None
    """What probe models run in; without it what their probes were trained with. Another needs
    `allow_mismatch: [dtype]`."""
    allow_mismatch: list[Check] = []
    """Checks of probes against their probe models that may fail; answers then carry the flag `mismatch-<check>`."""
    usd_per_million_tokens: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """What a prefilled token costs; default: the input price of the pool model that has the probe model's weights."""

    @model_validator(mode="after")
    def _where(self) -> Self:
        if self.kind == "process" and self.url is not None:
            raise ValueError("url is of an engine that runs elsewhere: say kind: remote, or kind: vllm")
        if self.kind == "remote":
            if not isinstance(self.url, str):
                raise ValueError("kind: remote needs one url: tcp://HOST:PORT or unix:///PATH")
            check_url(self.url)
        if self.kind == "vllm":
            if not self.urls:
                raise ValueError("kind: vllm needs a url: http://HOST:PORT")
            for url in self.urls:
                check_http(url)
        return self

    @property
    def urls(self) -> list[str]:
        return [self.url] if isinstance(self.url, str) else self.url or []
