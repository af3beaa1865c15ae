"""A first configuration from what servers say of themselves; what they cannot say is guessed, and marked so."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import yaml

from probes.source import is_path
from server.config import MODEL_NAME, NAME

GATEWAY_PORT = 8000
"""Unless a server of the pool has it, as vLLM's do by default."""
USD_PER_BILLION = (0.01, 0.04)
"""Input and output, USD per million tokens for each billion parameters: roughly what hosts of open models ask."""
USD_UNKNOWN = (1.0, 4.0)
SUCCESS = (0.6, 0.9)
"""Of the cheapest and of the dearest model."""
SIZE = re.compile(r"(?:(\d+)x)?(\d+(?:\.\d+)?)(b|m)(?![a-z])", re.IGNORECASE)
PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9._/-]*")

HEAD = """\
# Written by `pika init`. The servers have told names, models and context lengths; what they could not tell is marked
# GUESS: set it.
#
#   pika check {file}     does all fit together?
#   pika serve {file}     the gateway
#
# An arm without a probe has the same success probability for every request, so that all go to one arm. `pika rollouts`
# and `pika train` give each arm a probe from your own problems, `pika tune` sets the policy; `pika probes list
# CoffeeGitta/pika-probes` shows probes that others have trained.

server: {{host: 127.0.0.1, port: {port}}}

# What vLLM serves. The key is the name that the servers know the model by.
models:
"""
MODEL = """\
  {name}:    # {about}
    model: {model}{where}
    max_context_tokens: {context}
    # supports: [tools, images]    # what its servers take; tools need --enable-auto-tool-choice --tool-call-parser ...
    usd_per_million_tokens: {{input: {input:.3g}, output: {output:.3g}}}    # GUESS{basis}: what you pay
    replicas:
"""
FOLDER = "    # GUESS, a folder as its server names it: `pika rollouts` needs where it is here, or a Hub id"
"""Behind a model that is no Hub id."""

ARMS = """\

# What policies choose among, the cheapest first: a model, and request fields that define the arm, such as
# `request: {reasoning_effort: low}`.
arms:
"""
ARM = """\
  {arm}:
    model: {name}
    success_probability: {success:.2g}    # GUESS; in its place, once there is one, probe: probes/{arm}
    mean_tokens: {{input: 500, output: 300}}    # GUESS: of a prompt, and of an answer
    # defaults: {{temperature: 0.7, max_tokens: 2048}}    # where a request says nothing; `pika rollouts` samples so
"""
TAIL = """\

# lambda weighs cost against success probability; 0 ignores cost.
policy: {name: utility, lambda: 0.4}

# What is decided, and what comes of it, is kept in pika-ledger.sqlite beside this file (no prompts): the dashboard,
# outcomes and `pika replay` rest on it.
ledger: {}
"""


class InitError(Exception):
    """No configuration can be made of this; the message names the fix."""


@dataclass(frozen=True)
class Served:
    """A model that a server says it serves."""

    url: str
    """Of the server, ending in /v1."""
    name: str
    root: str
    """Hub id or folder, on the server's machine; of an adapter, the adapter's."""
    base: str
    """The same of the model whose size it has: of an adapter, what it adapts."""
    max_context_tokens: int
    version: str | None
    """vLLM's."""


@dataclass(frozen=True)
class Entry:
    """A model of the configuration, and its arm."""

    name: str
    arm: str
    root: str
    max_context_tokens: int
    urls: tuple[str, ...]
    versions: tuple[str, ...]
    billions: float | None
    """Parameters, as the name tells."""

    @property
    def usd(self) -> tuple[float, float]:
        """Guessed price of input and output, USD per million tokens."""
        if self.billions is None:
            return USD_UNKNOWN
        return USD_PER_BILLION[0] * self.billions, USD_PER_BILLION[1] * self.billions


def entries(served: Sequence[Served]) -> list[Entry]:
    """One per model, the cheapest by guess first; servers of the same model are its replicas.

    Raises:
        InitError: two servers call different models the same, or a name cannot stand in a configuration.
    """
    by_name: dict[str, list[Served]] = {}
    for one in served:
        by_name.setdefault(one.name, []).append(one)
    found = []
    arms = _arm_names(list(by_name))
    for name, replicas in by_name.items():
        first = replicas[0]
        for other in replicas:
            if other.root != first.root:
                raise InitError(
                    f"{first.url} and {other.url} both serve {name!r}, but it is {first.root} and {other.root}: start "
                    "one of them with another --served-model-name"
                )
        found.append(
            Entry(
                name=name,
                arm=arms[name],
                root=first.root,
                max_context_tokens=min(one.max_context_tokens for one in replicas),
                urls=tuple(dict.fromkeys(one.url for one in replicas)),
                versions=tuple(dict.fromkeys(one.version for one in replicas if one.version)),
                billions=_billions(first.base) or _billions(name),
            )
        )
    return sorted(found, key=lambda entry: entry.usd)


def config_text(found: Sequence[Entry], file: str, api_key_env: str | None) -> str:
    """The YAML, with comments."""
    taken = {urlsplit(url).port for entry in found for url in entry.urls}
    port = next(port for port in range(GATEWAY_PORT, 1 << 16) if port not in taken)
    key = "" if api_key_env is None else f", api_key_env: {_quoted(api_key_env)}"
    parts = [HEAD.format(file=file, port=port)]
    for entry in found:
        usd = dict(zip(("input", "output"), entry.usd, strict=True))
        basis = "" if entry.billions is None else f" from {entry.billions:g} billion parameters"
        parts.append(
            MODEL.format(
                name=_quoted(entry.name),
                about=" and ".join(f"vLLM {version}" for version in entry.versions) or "of an unknown version",
                model=_quoted(entry.root),
                where=FOLDER if is_path(entry.root) else "",
                context=entry.max_context_tokens,
                basis=basis,
                **usd,
            )
        )
        parts += [f"      - {{url: {_quoted(url)}{key}}}\n" for url in entry.urls]
    parts.append(ARMS)
    for i, entry in enumerate(found):
        share = i / (len(found) - 1) if len(found) > 1 else 0.5
        success = SUCCESS[0] + share * (SUCCESS[1] - SUCCESS[0])
        parts.append(ARM.format(arm=_quoted(entry.arm), name=_quoted(entry.name), success=success))
    return "".join((*parts, TAIL))


def _arm_names(models: Sequence[str]) -> dict[str, str]:
    """A valid name for each model's arm: what follows the last slash, where that is unique, else all of it."""
    short = [_slug(name.rpartition("/")[2]) for name in models]
    arms = {
        name: own if short.count(own) == 1 else _slug(name.replace("/", "--"))
        for name, own in zip(models, short, strict=True)
    }
    for name, arm in arms.items():
        if not MODEL_NAME.fullmatch(name) or not NAME.fullmatch(arm) or list(arms.values()).count(arm) > 1:
            raise InitError(f"no arm can be named after {name!r}: start its server with another --served-model-name")
    return arms


def _slug(name: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")
    return (f"model-{plain}" if plain.startswith("auto") else plain)[:64]


def _billions(name: str) -> float | None:
    """Parameters that a name such as Qwen2.5-7B or Mixtral-8x7B tells."""
    match = SIZE.search(name.rstrip("/").rpartition("/")[2])
    if match is None:
        return None
    experts, count, unit = match.groups()
    size = float(count) * int(experts or 1) * (1 if unit.lower() == "b" else 1e-3)
    return size if 0 < size < 1e5 else None


def _quoted(text: str) -> str:
    """As YAML reads it back: quoted unless it is a plain word."""
    plain = PLAIN.fullmatch(text) and yaml.safe_load(text) == text
    return text if plain else json.dumps(text)
