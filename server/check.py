"""`pika check`: do configuration, probes, probe models and replicas fit together, and what to do where not."""

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from probes.base import ProbeError
from probes.card import Pass, ProbeCard
from probes.source import model_file, read_json
from server.config import ConfigError, Settings, load
from server.policies import Policies
from server.pool import Pool, build_pool
from server.predictor import Predictor
from server.sections import Replica
from server.vllm_server import LaunchError, plan, require_vllm

TIMEOUT_S = 5.0
PLACEHOLDER_URL = "http://launched-by-pika-up:{}/v1"


@dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    subject: str
    good: bool
    message: str


def main(argv: list[str]) -> int:
    """`pika check`; exit code 0 where all is well, 1 where something must be done."""
    parser = argparse.ArgumentParser(
        prog="pika check",
        description="Say whether configuration, probes, probe models and replicas fit together. Starts nothing.",
        epilog="examples:\n  pika check pool.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the YAML file of the pool")
    args = parser.parse_args(argv)
    try:
        settings = load(args.config)
    except ConfigError as error:
        print(f"pika: {error}", file=sys.stderr)
        return 2
    findings = list(check(settings))
    table = Table("", "what", Column("finding", overflow="fold"), title=str(args.config))
    for finding in findings:
        table.add_row("[green]ok" if finding.good else "[red]no", escape(finding.subject), escape(finding.message))
    Console().print(table)
    failed = sum(not finding.good for finding in findings)
    print("all is well" if not failed else f"{failed} of {len(findings)} checks failed")
    return 1 if failed else 0


def check(settings: Settings) -> Iterator[Finding]:
    """All findings; later ones rest on earlier ones and are left out where those failed."""
    yield Finding("configuration", True, f"{len(settings.models)} models, {len(settings.arms)} arms")
    try:
        pool = build_pool(with_placeholders(settings))
        predictor = Predictor(pool, settings)
    except (ConfigError, ProbeError) as error:
        yield Finding("probes", False, str(error))
    else:
        yield from _probes(pool, predictor, settings)
        yield _policy(pool, settings)
    for name, model in settings.models.items():
        for replica in model.replicas:
            if replica.url is not None:
                yield _running(name, replica)
    yield from _launchable(settings)


def with_placeholders(settings: Settings) -> Settings:
    """The settings with a URL for every replica, so that a pool can be built before its servers run."""
    ports = iter(range(1, 1 << 16))
    models = {
        name: model.model_copy(
            update={
                "replicas": [
                    replica if replica.url is not None else Replica(url=PLACEHOLDER_URL.format(next(ports)))
                    for replica in model.replicas
                ]
            }
        )
        for name, model in settings.models.items()
    }
    return settings.model_copy(update={"models": models})


def _probes(pool: Pool, predictor: Predictor, settings: Settings) -> Iterator[Finding]:
    for arm in pool.arms:
        if arm.artifact is None:
            yield Finding(f"arm {arm.name}", True, f"no probe: always {arm.success_probability}, flagged uncalibrated")
            continue
        card = arm.artifact.card
        metrics = card.metrics[-1]
        finding = f"{card.probe_name}: AUROC {metrics.auroc.value:.3f}, ECE {metrics.ece.value:.3f} ({metrics.split})"
        yield Finding(f"arm {arm.name}", True, finding)
        if not card.beats_length:
            finding = "its probe does not surely know more than the prompt's length: train it on more problems"
            yield Finding(f"arm {arm.name}", False, finding)
        if card.target.model != arm.model.name:
            yield Finding(
                f"arm {arm.name}",
                False,
                f"its probe predicts the model {card.target.model}, the arm asks {arm.model.name}",
            )
    if not predictor.passes:
        return
    if find_spec("torch") is None:
        yield Finding("engine", False, "torch is not installed: pip install 'pika-router[engine]'")
    for pass_, usd in zip(predictor.passes, predictor.pass_usd_per_token, strict=True):
        arms = [arm for arm in pool.arms if arm.artifact is not None and arm.artifact.pass_ == pass_]
        cards = [arm.artifact.card for arm in arms if arm.artifact is not None]
        depth = max(card.site.layer for card in cards if card.site is not None)
        misfit = _misfit(pass_, cards)
        if misfit is not None:
            yield Finding(f"pass of {Path(pass_.probe_model).name}", False, misfit)
            continue
        cost = usd * sum(arm.mean_input_tokens for arm in arms) / len(arms)
        readers = ", ".join(arm.name for arm in arms)
        finding = f"layers 0..{depth} in {pass_.dtype}, read by {readers}; about {cost:.3g} USD a request"
        yield Finding(f"pass of {Path(pass_.probe_model).name}", True, finding)


def _policy(pool: Pool, settings: Settings) -> Finding:
    try:
        policies = Policies(settings, pool.tier_cost, pool.probes_sha256)
    except ConfigError as error:
        return Finding("policy", False, str(error))
    if policies.stale:
        return Finding("policy", False, f"{settings.policy.tuned} was tuned for another pool: run `pika tune` again")
    knobs = {name: value for name, value in policies.knobs.items() if name != "table"}
    return Finding("policy", True, f"{policies.name} {knobs}")


def _misfit(pass_: Pass, cards: list[ProbeCard]) -> str | None:
    """Why a probe model cannot serve its probes, by its configuration and files alone; None where it can."""
    try:
        config = read_json(model_file(pass_, "config.json"))
    except ProbeError as error:
        return str(error)
    config = config.get("text_config", config)
    layers, d_model = config.get("num_hidden_layers"), config.get("hidden_size")
    for card in cards:
        if layers is not None and card.site is not None and card.site.layer > layers:
            return f"the probe of {card.target.arm} reads layer {card.site.layer} of a model with {layers}: train anew"
        if d_model is not None and card.d_model != d_model:
            return f"the probe of {card.target.arm} reads {card.d_model} dimensions of {d_model}: train it anew"
    folder = Path(pass_.probe_model)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        return f"{folder} has no weights in safetensors: give the folder of a whole model"
    return None


def _running(name: str, replica: Replica) -> Finding:
    """Whether a server answers and serves the model under this name."""
    subject = f"model {name} at {replica.url}"
    key = os.environ.get(replica.api_key_env or "", "")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{replica.url}/models", headers=headers, timeout=TIMEOUT_S, trust_env=False)
        if answer.status_code in (401, 403):
            return Finding(subject, False, f"refuses the key ({answer.status_code}): name its variable as api_key_env")
        names = [str(entry["id"]) for entry in answer.raise_for_status().json()["data"]]
    except httpx.HTTPError as error:
        return Finding(subject, False, f"does not answer GET /models ({error}): start it, or correct the url")
    except (ValueError, KeyError, TypeError):
        return Finding(subject, False, "does not answer GET /models as an OpenAI-compatible server does")
    if name not in names:
        return Finding(subject, False, f"serves {', '.join(names)}: start it with --served-model-name {name}")
    return Finding(subject, True, "serves it")


def _launchable(settings: Settings) -> Iterator[Finding]:
    """Whether `pika up` could start the `launch` entries."""
    try:
        servers = plan(settings, Path())
        if servers:
            require_vllm()
    except (ConfigError, LaunchError) as error:
        yield Finding("launch", False, str(error))
        return
    for server in servers.values():
        yield Finding(f"model {server.name}, launched", True, "`pika up` can start it")
