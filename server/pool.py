"""Models, arms and replicas as the gateway runs them."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from probes.artifact import Artifact
from probes.base import FloatArray, ProbeError
from probes.prompt import Renderer
from probes.reference import load_probe
from routing_policies.base import BoolArray
from routing_policies.costs import tier_cost
from server.config import ConfigError, Settings
from server.http.head import Lines, lines_of
from server.sections.pool import Arm as ArmSettings
from server.sections.pool import ArmLimits, Capability, Prices
from server.sections.pool import Model as ModelSettings
from server.sections.serving import Limits
from server.upstream.replica import Replica

logger = logging.getLogger(__name__)

OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens")


@dataclass(frozen=True)
class Timeouts:
    """What bounds one exchange with an upstream."""

    connect_s: float = 2
    first_byte_s: float = 120
    between_chunks_s: float = 60
    total_s: float = 900

    @classmethod
    def of(cls, limits: Limits, own: ArmLimits) -> "Timeouts":
        """An arm's own limits, else everybody's."""
        return cls(**{name: getattr(own, name) or getattr(limits, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Model:
    """What one or more equal replicas serve under one name."""

    name: str
    max_context_tokens: int
    supports: frozenset[Capability]
    prices: Prices
    replicas: tuple[Replica, ...]
    prefix_affinity: bool = False
    """Whether requests that begin alike shall go to the same replica."""


@dataclass(eq=False)
class Arm:
    """What policies choose among: a model under fixed request fields. Nobody changes it.

    What follows from its fields is computed once: requests read it, and a `cached_property` takes as long as a call.
    """

    name: str
    model: Model
    request: Mapping[str, Any]
    defaults: Mapping[str, Any]
    artifact: Artifact | None
    success_probability: float | None
    """Stands in for a probe."""
    mean_input_tokens: float
    mean_output_tokens: float
    timeouts: Timeouts = field(default_factory=Timeouts)
    plain: bool = field(init=False)
    """Whether bodies reach it as they are."""
    probe_name: str | None = field(init=False)
    """The probe and its very weights, as headers and metrics name it."""
    lines: Lines = field(init=False)
    """The headers by which answers say of it."""
    uncalibrated: bool = field(init=False)
    """Whether the success probability is not known to be that of one answer."""

    def __post_init__(self) -> None:
        self.plain = not self.request and not self.defaults
        artifact = self.artifact
        self.probe_name = None if artifact is None else f"{artifact.card.probe_name}@{artifact.revision}"
        self.uncalibrated = artifact is None or artifact.card.calibration.of != "success"
        headers = [(b"x-pika-arm", self.name.encode()), (b"x-model-router-selected-model", self.model.name.encode())]
        if self.probe_name is not None:
            headers.append((b"x-pika-probe", self.probe_name.encode("latin-1", "replace")))
        self.lines = lines_of(headers)

    def cost_usd(self, input_tokens: float, output_tokens: float) -> float:
        """USD of one answer."""
        prices = self.model.prices
        return (input_tokens * prices.input + output_tokens * prices.output) / 1e6

    def fields(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A client's body as this arm gets it: its defaults where the client says nothing, its request always."""
        if self.plain:
            return dict(body)
        said = {name: value for name, value in body.items() if value is not None or name not in self.defaults}
        fields: dict[str, Any] = {}
        for layer in (self.defaults, said, self.request):
            if any(layer.get(name) is not None for name in OUTPUT_LIMITS):
                # Two names of one limit: what an earlier layer said under either name is overruled.
                for name in OUTPUT_LIMITS:
                    fields.pop(name, None)
            fields |= layer
        return fields

    def max_tokens(self, body: Mapping[str, Any]) -> int | None:
        """The output limit that a request will reach this arm with; None where nobody set one."""
        fields = body if self.plain else self.fields(body)
        for name in OUTPUT_LIMITS:
            limit = fields.get(name)
            if isinstance(limit, int):
                return limit
        return None

    def sampling_changed(self, body: Mapping[str, Any]) -> bool:
        """Whether the client departs from what the probe's labels were sampled with."""
        if self.artifact is None:
            return False
        target = self.artifact.card.target
        limit = self.max_tokens(body)
        temperature = self.fields(body).get("temperature", 1.0)
        return temperature != target.temperature or (limit is not None and limit < target.max_tokens)


@dataclass(eq=False)
class Pool:
    """All that is routed over; arms in the configuration's order. Nobody changes it."""

    arms: tuple[Arm, ...]
    models: tuple[Model, ...]
    tier_cost: tuple[float, ...]
    """Mean USD of one answer per arm, (k,)."""
    names: list[str] = field(init=False)
    """Of the arms."""
    mean_costs: FloatArray = field(init=False)
    """`tier_cost` as an array, (k,)."""
    wordiest_tokens: int = field(init=False)
    """Mean output tokens of the arm that writes most."""
    plain: bool = field(init=False)
    """Whether bodies reach every arm as they are."""
    least_context_tokens: int = field(init=False)
    """What every arm's context holds."""
    every_arm: BoolArray = field(init=False)
    """(k,), all true."""

    def __post_init__(self) -> None:
        self.names = [arm.name for arm in self.arms]
        self._indices = {name: i for i, name in enumerate(self.names)}
        self.mean_costs = np.array(self.tier_cost)
        self.wordiest_tokens = int(max(arm.mean_output_tokens for arm in self.arms))
        self.plain = all(arm.plain for arm in self.arms)
        self.least_context_tokens = min(arm.model.max_context_tokens for arm in self.arms)
        self.every_arm = np.ones(len(self.arms), dtype=np.bool_)

    def index(self, name: str) -> int | None:
        return self._indices.get(name)

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """The probes to serve, in arm order; equal folders stand once per arm."""
        return tuple(arm.artifact for arm in self.arms if arm.artifact is not None)

    @property
    def probes_sha256(self) -> dict[str, str]:
        """Hash of what each arm's probe predicts, by arm."""
        return {arm.name: arm.artifact.predictions_sha256 for arm in self.arms if arm.artifact is not None}

    @property
    def mismatches(self) -> tuple[str, ...]:
        """Flags for the checks that fail and were overridden."""
        return tuple(dict.fromkeys(f"mismatch-{name}" for one in self.artifacts for name in one.mismatches))


def build_pool(settings: Settings, artifacts: Mapping[str, Artifact] | None = None) -> Pool:
    """The pool of a configuration whose replicas all have a URL.

    Args:
        artifacts: the probes by arm, where they have been read already.

    Raises:
        ConfigError: a model has no replica, a replica no URL, a key variable is not set, or mean tokens are missing.
        ProbeError: a probe artifact does not load; HubAwayError where it cannot be fetched now.
    """
    for problem in settings.unserved.values():
        raise ConfigError(problem)
    models = {name: _build_model(name, model) for name, model in settings.models.items()}
    artifacts = load_probes(settings) if artifacts is None else artifacts
    arms = tuple(
        _build_arm(name, arm, models[arm.model], artifacts.get(name), settings.limits)
        for name, arm in settings.arms.items()
    )
    costs = tier_cost(
        [arm.mean_input_tokens for arm in arms],
        [arm.mean_output_tokens for arm in arms],
        [arm.model.prices.input for arm in arms],
        [arm.model.prices.output for arm in arms],
    )
    return Pool(arms=arms, models=tuple(models.values()), tier_cost=tuple(costs.tolist()))


def _build_model(name: str, settings: ModelSettings) -> Model:
    replicas = []
    for number, replica in enumerate(settings.replicas):
        if replica.url is None:
            raise ConfigError(
                f"models.{name}.replicas.{number} has launch but no url: `pika up` starts such replicas, "
                "`pika serve` needs the url of a running server"
            )
        headers = {}
        if replica.api_key_env is not None:
            key = os.environ.get(replica.api_key_env)
            if not key:
                raise ConfigError(
                    f"models.{name}.replicas.{number}: set the environment variable {replica.api_key_env}"
                )
            headers["authorization"] = f"Bearer {key}"
        replicas.append(Replica.at(replica.url, headers))
    names = [replica.name for replica in replicas]
    if len(set(names)) < len(names):
        raise ConfigError(f"models.{name}.replicas name the same host and port twice: {', '.join(names)}")
    return Model(
        name=name,
        max_context_tokens=settings.max_context_tokens,
        supports=frozenset(settings.supports),
        prices=settings.usd_per_million_tokens,
        replicas=tuple(replicas),
        prefix_affinity=settings.prefix_affinity,
    )


def load_probes(settings: Settings) -> dict[str, Artifact]:
    """By arm."""
    artifacts: dict[str, Artifact] = {}
    renderers: list[Renderer] = []  # one per pass, whose tokenizer all its probes are checked with
    for name, reference in settings.probes.items():
        try:
            artifacts[name] = load_probe(reference, renderers=renderers, **settings.probe_options)
        except ProbeError as error:
            raise type(error)(f"arms.{name}.probe: {error}") from error
    return artifacts


def _build_arm(name: str, arm: ArmSettings, model: Model, artifact: Artifact | None, limits: Limits) -> Arm:
    if artifact is not None and not artifact.card.beats_length:
        logger.warning("arm %s: its probe does not surely know more than the prompt's length; train it on more", name)
    # The artifact's own mean wins: it was measured on the answers that the probe was trained on.
    tokens = (artifact.card.mean_tokens if artifact is not None else None) or arm.mean_tokens
    if tokens is None:
        raise ConfigError(f"arms.{name} needs mean_tokens: {{input: ..., output: ...}}")
    return Arm(
        name=name,
        model=model,
        request=arm.request,
        defaults=arm.defaults,
        artifact=artifact,
        success_probability=arm.success_probability,
        mean_input_tokens=tokens.input,
        mean_output_tokens=tokens.output,
        timeouts=Timeouts.of(limits, arm.limits),
    )
