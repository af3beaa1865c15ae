"""The sections of a configuration file: every key with its unit and default. pydantic alone."""

import difflib
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from probes.card import Check, Dtype
from probes.engine.address import check_url

RoutingField = Literal[
    "policy", "variant", "lambda", "value", "thresholds", "min_success", "accuracy", "max_cost_usd", "arms", "fallback"
]
ROUTING_FIELDS: tuple[RoutingField, ...] = (
    "policy", "variant", "lambda", "value", "thresholds", "min_success", "accuracy", "max_cost_usd", "arms",
    "fallback",
)  # fmt: skip
Capability = Literal["tools", "images"]
MAX_WORKERS = 64


class Section(BaseModel):
    """A mapping of the YAML file. An unknown key is an error that names the nearest valid one."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            valid = [field.alias or name for name, field in cls.model_fields.items()]
            for key in data:
                if key not in valid and key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), valid, n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
                    raise ValueError(f"unknown key {key!r}: {hint}")
        return data


class Server(Section):
    """All but `drain_s` is read when the gateway starts: a reload does not change it."""

    host: str = "127.0.0.1"
    """Address to listen at."""
    port: int = Field(default=8000, ge=0, le=65535)
    """0: any free one, which the log names."""
    public: bool = False
    """Whether `host` may be an address that other machines reach: whoever reaches it may ask."""
    workers: int = Field(default=1, ge=1, le=MAX_WORKERS)
    """Processes that answer; with more than one, a parent of theirs holds the port and the one engine."""
    drain_s: float = Field(default=30, ge=0)
    """After SIGTERM, open requests have so long to end."""


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


def _check_http(url: str) -> None:
    """
    Raises:
        ValueError: it is no URL of a server, or has a password in it.
    """
    parts = urlsplit(url)
    _ = parts.port  # raises ValueError where it is no port
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no http(s) URL, such as http://127.0.0.1:8101/v1")
    if "@" in parts.netloc:
        raise ValueError("leave user and password out, which logs would show; api_key_env names a key's variable")


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
        _check_http(url)
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
                _check_http(url)
        return self

    @property
    def urls(self) -> list[str]:
        return [self.url] if isinstance(self.url, str) else self.url or []


class SafeArm(Section):
    arm: str
    """Where it can serve them."""


class OutOfDistribution(Section):
    """What to do with prompts unlike those that the probes were trained on, whose probabilities mean little."""

    percentile: float = Field(default=99, gt=0, le=100)
    """A prompt is one where its activation lies further off than that of this share, in percent, of known prompts."""
    action: Literal["none", "flag"] | SafeArm = "flag"
    """`flag`: answers carry the flag `out-of-distribution`. `{arm: NAME}`: they do, and this arm takes such prompts."""

    @property
    def safe_arm(self) -> str | None:
        return self.action.arm if isinstance(self.action, SafeArm) else None


class Policy(Section):
    """A policy and its knob, or the file that `pika tune` wrote."""

    name: str | None = None
    """utility, cascade, min_success, target_accuracy, max_success, min_cost or random."""
    tuned: str | None = None
    """Path of policy.tuned.json. Knobs that stand beside it win over the file's."""
    variant: str | None = None
    """Of `utility`: lambda (default), original, normalized, ratio, success_per_dollar, threshold or sigmoid."""
    lam: float | None = Field(default=None, alias="lambda", ge=0, allow_inf_nan=False)
    """Of `utility`: the weight of cost; 0 ignores it."""
    value: float | None = Field(default=None, allow_inf_nan=False)
    """Of `utility` in some variants: what a right answer is worth."""
    thresholds: float | list[float] | None = None
    """Of `cascade`: one for all steps, or one for each; a step up while the probability is not above it."""
    min_success: float | None = Field(default=None, ge=0, le=1)
    """Of `min_success`: the probability that every answer must have."""
    accuracy: float | None = Field(default=None, ge=0, le=1)
    """Of `target_accuracy`: the mean that is kept to; needs `tuned`."""
    max_cost_usd: float | None = Field(default=None, ge=0)
    """No arm whose answer is expected to cost more; where all are, the cheapest, flag `infeasible`."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.name is None and self.tuned is None:
            raise ValueError("policy needs a name (such as utility) or tuned (the file that `pika tune` wrote)")
        return self

    def knobs(self) -> dict[str, Any]:
        """The knobs that are set, by the words of the API's `routing` object."""
        knobs = self.model_dump(by_alias=True, exclude_none=True)
        return {key: value for key, value in knobs.items() if key not in ("name", "tuned")}


class Keys(Section):
    """Users' keys, which everything but /health, /ready, /metrics, /dashboard and /admin asks for from now on."""

    file: str
    """Path of the file that `pika keys` writes, relative to this one's folder; looked at every second."""


class Admin(Section):
    """Opens /admin to whoever sends this key as `authorization: Bearer KEY`."""

    key_env: str
    """Name of the environment variable that holds the key, of 16 characters at least."""


class Limits(Section):
    """Bounds on what one gateway process takes on, each worker by itself; times in seconds."""

    connections: int = Field(default=10_000, gt=0)
    """Clients' open connections, idle ones included; further ones are answered with 503 and closed."""
    in_flight: int = Field(default=1000, gt=0)
    """Requests at once; further ones get 503 with Retry-After."""
    head_kb: float = Field(default=32, gt=0)
    """Request line and headers."""
    head_s: float = Field(default=10, gt=0)
    """From a request's first byte to the end of its headers."""
    body_mb: float = Field(default=10, gt=0)
    """Of one request, as it comes and unpacked."""
    bodies_mb: float = Field(default=500, gt=0)
    """Of all requests in flight together, bodies of up to 64 kB left out; a body is held until its answer begins, and
    with `ledger: {prompts: true}` until it ends."""
    body_s: float = Field(default=120, gt=0)
    """From the end of a request's head to the end of its body."""
    connect_s: float = Field(default=2, gt=0)
    """To an upstream."""
    first_byte_s: float = Field(default=120, gt=0)
    """From the request sent upstream to a stream's first byte; an answer that is no stream has `total_s`."""
    between_chunks_s: float = Field(default=60, gt=0)
    """Of a stream."""
    total_s: float = Field(default=900, gt=0)
    """From a request's whole body to the end of its answer."""
