"""The sections of a configuration file that say what is served and chosen among. pydantic alone."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from server.sections.base import Section, check_http

Capability = Literal["tools", "images"]


class Prices(Section):
    """USD per million tokens."""

    input: float = Field(ge=0, allow_inf_nan=False)
    """Of prompts."""
    output: float = Field(ge=0, allow_inf_nan=False)
    """Of answers."""


class Launch(Section):
    """A vLLM server that `pika up` starts on this machine."""

    port: int | None = Field(default=None, ge=1, le=65535)
    """Without it any free one."""
    gpus: list[int] = []
    """CUDA_VISIBLE_DEVICES of this server; empty leaves the environment's."""
    args: list[str] = []
    """Passed to vLLM's API server after the ones that PIKA sets."""
    env: dict[str, str] = {}
    """Further variables of its environment."""

    @field_validator("args")
    @classmethod
    def _without_keys(cls, args: list[str]) -> list[str]:
        for option, variable in (("--api-key", "VLLM_API_KEY"), ("--hf-token", "HF_TOKEN")):
            if any(arg.partition("=")[0].replace("_", "-") == option for arg in args):
                raise ValueError(f"leave {option} out, which rollouts would record: set {variable} in the environment")
        return args


class Replica(Section):
    """One vLLM process: a URL where it runs, or how to launch it."""

    url: str | None = None
    """Base URL, ending in /v1."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key sent upstream."""
    launch: Launch | None = None
    """In place of `url`: how `pika up` starts it."""

    @field_validator("url")
    @classmethod
    def _http(cls, url: str | None) -> str | None:
        if url is None:
            return None
        check_http(url)
        if not url.rstrip("/").endswith("/v1"):
            raise ValueError(f"{url!r} must be the base URL of an OpenAI-compatible server, which ends in /v1")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.url is None) == (self.launch is None):
            raise ValueError("a replica has either url (it runs already) or launch (`pika up` starts it)")
        return self


class Model(Section):
    """What vLLM serves under one --served-model-name."""

    model: str
    """Hub id, or a path; relative paths are resolved against the YAML file's folder."""
    max_context_tokens: int = Field(gt=0)
    """Of prompt and answer together; longer requests go to other arms."""
    supports: list[Capability] = []
    """What its requests may have; those with anything else go to other arms."""
    usd_per_million_tokens: Prices
    prefix_affinity: bool = False
    """Requests that begin alike go to the same replica, whose prefix cache knows them, while it is not much busier."""
    replicas: list[Replica] = []
    """None where a pool is only trained, tuned and evaluated: what serves an arm needs at least one."""


class MeanTokens(Section):
    """Tokens of an average request, from which costs are estimated."""

    input: float = Field(ge=0)
    """Of the prompt."""
    output: float = Field(ge=0)
    """Of the answer."""


class ArmLimits(Section):
    """Times in seconds that an arm has in place of `limits`'."""

    connect_s: float | None = Field(default=None, gt=0)
    """To an upstream."""
    first_byte_s: float | None = Field(default=None, gt=0)
    """From the request sent upstream to a stream's first byte."""
    between_chunks_s: float | None = Field(default=None, gt=0)
    """Of a stream."""
    total_s: float | None = Field(default=None, gt=0)
    """From a request's whole body to the end of its answer."""


class Arm(Section):
    """What policies choose among: a pool model under fixed request fields."""

    model: str
    """A key of `models`."""
    request: dict[str, Any] = {}
    """Always set in the body; they define the arm."""
    defaults: dict[str, Any] = {}
    """Set where the client says nothing."""
    probe: str | None = None
    """A probe: its folder, relative to the YAML file's, or `hf://owner/repo/folder[@revision]`."""
    success_probability: float | None = Field(default=None, ge=0, le=1)
    """Instead of a probe: a constant, flagged `uncalibrated`."""
    mean_tokens: MeanTokens | None = None
    """Needed where there is no probe, or it knows none; what a probe knows wins."""
    limits: ArmLimits = ArmLimits()

    @field_validator("request", "defaults")
    @classmethod
    def _no_reserved_fields(cls, fields: dict[str, Any]) -> dict[str, Any]:
        for name in ("model", "messages", "stream", "stream_options", "routing"):
            if name in fields:
                raise ValueError(f"{name!r} is set by the gateway or the client and cannot stand here")
        return fields

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.probe is None) == (self.success_probability is None):
            raise ValueError("an arm has either probe (a folder or hf://...) or success_probability (a constant)")
        if self.probe is None and self.mean_tokens is None:
            raise ValueError("an arm without a probe needs mean_tokens: {input: ..., output: ...}")
        return self
