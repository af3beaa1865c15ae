"""`pika check`: do configuration, probes, probe models and replicas fit together, and what to do where not."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from probes.artifact import Artifact
from probes.base import ProbeError
from probes.card import Pass
from probes.engine.vllm_serving import check_servable
from probes.hub import is_reference
from probes.legacy import is_legacy
from probes.source import model_file, read_json, short_name
from server.commands.check_sections import Finding, keys, ledger, lived_with
from server.config import ConfigError, Settings, load
from server.http.listen import resolve
from server.launch.vllm_server import LaunchError, plan, require_vllm
from server.live import needs_torch
from server.pool import Arm, Pool, build_pool
from server.predictor import Predictor
from server.routing.policies import Policies
from server.sections.policy import Policy
from server.sections.pool import Replica
from server.sections.serving import Server

TIMEOUT_S = 5.0
PLACEHOLDER_URL = "http://launched-by-pika-up:{}/v1"


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
    yield _server(settings.server)
    try:
        pool = build_pool(with_placeholders(settings))
        predictor = Predictor(pool, settings)
    except (ConfigError, ProbeError) as error:
        yield Finding("probes", False, str(error))
    else:
        yield from _probes(pool, predictor, settings)
        yield _policy(pool, settings, settings.policy, "policy")
        if settings.canary is not None:
            yield _policy(pool, settings, settings.canary.policy, "canary.policy")
        yield from lived_with(settings)
        yield from keys(pool, settings)
    yield from ledger(settings)
    for name, problem in settings.unserved.items():
        yield Finding(f"model {name}", False, problem)
    for name, model in settings.models.items():
        for replica in model.replicas:
            if replica.url is not None:
                yield _running(name, replica)
    yield from _launchable(settings)


def _server(server: Server) -> Finding:
    if server.workers == 1:
        said = "one process answers"
    else:
        said = (
            f"{server.workers} processes answer, one engine computes for all; limits are those of each process, and "
            "each holds the probes' tokenizers"
        )
    try:
        resolve(server)
    except ConfigError as error:
        return Finding("server", False, str(error))
    except OSError as error:
        return Finding("server", False, f"server.host {server.host} is not known here ({error.strerror or error})")
    return Finding("server", True, f"{said}, at {server.host}:{server.port}{' for all to reach' * server.public}")


def with_placeholders(settings: Settings) -> Settings:
    """The settings with a replica for every model and a URL for every replica: a pool of them can be built before any
    server runs."""
    ports = iter(range(1, 1 << 16))

    def placeholder() -> Replica:
        return Replica(url=PLACEHOLDER_URL.format(next(ports)))

    models = {
        name: model.model_copy(
            update={
                "replicas": [replica if replica.url is not None else placeholder() for replica in model.replicas]
                or [placeholder()]
            }
        )
        for name, model in settings.models.items()
    }
    return settings.model_copy(update={"models": models})


def _probes(pool: Pool, predictor: Predictor, settings: Settings) -> Iterator[Finding]:
    for arm in pool.arms:
        for good, message in _arm(arm, settings.models[arm.model.name].model):
            yield Finding(f"arm {arm.name}", good, message)
    if needs_torch(settings, pool) and find_spec("torch") is None:
        yield Finding("engine", False, "torch is not installed: pip install 'pika-router[engine]'")
    if settings.engine.kind == "vllm":
        yield from _read_by_vllm(pool)
    readers = [arm for arm in pool.arms if arm.artifact is not None and arm.artifact.pass_ is None]
    if readers:
        yield Finding("prompts' text", True, f"read by {_names(readers)}; no probe model runs")
    for pass_, usd in zip(predictor.passes, predictor.pass_usd_per_token, strict=True):
        readers = [arm for arm in pool.arms if arm.artifact is not None and arm.artifact.pass_ == pass_]
        artifacts = [arm.artifact for arm in readers if arm.artifact is not None]
        subject = f"pass of {Path(pass_.probe_model).name}"
        if all(artifact.probe.site is None for artifact in artifacts):
            yield Finding(subject, True, f"counts tokens for {_names(readers)}; no layer runs")
            continue
        try:
            runs = _runs(pass_, artifacts)
        except ProbeError as error:
            yield Finding(subject, False, str(error))
            continue
        cost = usd * sum(arm.mean_input_tokens for arm in readers) / len(readers)
        finding = f"{runs} in {pass_.dtype}, read by {_names(readers)}; about {cost:.3g} USD a request"
        yield Finding(subject, True, finding)


def _read_by_vllm(pool: Pool) -> Iterator[Finding]:
    for artifact in pool.artifacts:
        try:
            check_servable(artifact)
        except ProbeError as error:
            yield Finding("engine", False, str(error))


def _arm(arm: Arm, model: str) -> Iterator[tuple[bool, str]]:
    """Whether all is well with an arm's probe, and what there is to say of it.

    Args:
        model: what its pool model is, as the configuration says.
    """
    if arm.artifact is None:
        yield True, f"no probe: always {arm.success_probability}, flagged uncalibrated"
        return
    artifact, card = arm.artifact, arm.artifact.card
    yield True, "; ".join(_facts(artifact))
    if card.calibration.of != "success":
        votes = "its probabilities are of the majority vote, not of one answer"
        of = votes if card.calibration.of == "majority_vote" else "what its probabilities are of is not on record"
        out = " --out FOLDER" if is_reference(artifact.source) or is_legacy(artifact.folder) else ""
        yield (
            False,
            f"{of}; flagged uncalibrated until `pika probes calibrate {artifact.source} --data ROLLOUTS{out}`",
        )
    if not card.beats_length:
        yield False, "its probe does not surely know more than the prompt's length: train it on more problems"
    if short_name(card.target.model) not in (arm.model.name, short_name(model)):
        yield False, f"its probe predicts the model {card.target.model}, the arm asks {arm.model.name}"


def _facts(artifact: Artifact) -> Iterator[str]:
    card = artifact.card
    on_hub = is_reference(artifact.source)  # which names the commit
    yield f"{card.probe_name} from {artifact.source}" + ("" if on_hub else f", revision {artifact.revision}")
    if artifact.from_cache:
        yield "the Hub is away, so that is its cache's"
    if card.metrics:
        last = card.metrics[-1]
        yield f"AUROC {last.auroc.value:.3f}, ECE {last.ece.value:.3f} ({last.split})"
    else:
        yield "how well it does is not on record"
    heads = {"output-token head": card.output_tokens, "activation statistics": card.statistics}
    yield ", ".join(f"{name}: {'no' if head is None else 'yes'}" for name, head in heads.items())
    if artifact.mismatches:
        yield f"in spite of the mismatch {', '.join(artifact.mismatches)}, which answers are flagged with"


def _names(arms: Sequence[Arm]) -> str:
    return ", ".join(arm.name for arm in arms)


def _runs(pass_: Pass, artifacts: Sequence[Artifact]) -> str:
    """How much of a probe model runs.

    Raises:
        ProbeError: it cannot serve its probes, by its configuration and files alone.
    """
    config = read_json(model_file(pass_, "config.json"))
    config = config.get("text_config", config)
    layers, d_model = config.get("num_hidden_layers"), config.get("hidden_size")
    deepest = 0
    for card in (artifact.card for artifact in artifacts):
        heads = (card, card.output_tokens, card.statistics)
        sites = [head.site for head in heads if head is not None and head.site is not None]
        deepest = max(deepest, *(site.layer for site in sites), 0)
        if layers is not None and deepest > layers:
            raise ProbeError(
                f"the probe of {card.target.arm} reads layer {deepest} of a model with {layers}: train it anew"
            )
        if None not in (d_model, card.d_model) and card.d_model != d_model:
            raise ProbeError(
                f"the probe of {card.target.arm} reads {card.d_model} dimensions of {d_model}: train it anew"
            )
    folder = Path(pass_.probe_model)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise ProbeError(f"{folder} has no weights in safetensors: give the folder of a whole model")
    if any(artifact.probe.next_token for artifact in artifacts):
        return f"layers 0..{'last' if layers is None else layers} and the LM head, for next-token statistics,"
    return f"layers 0..{deepest}"


def _policy(pool: Pool, settings: Settings, section: Policy, where: str) -> Finding:
    try:
        policies = Policies(settings, pool.tier_cost, pool.probes_sha256, section, where)
    except ConfigError as error:
        return Finding(where, False, str(error))
    if policies.stale:
        return Finding(where, False, f"{section.tuned} was tuned for another pool: run `pika tune` again")
    knobs = {name: value for name, value in policies.knobs.items() if name != "table"}
    return Finding(where, True, f"{policies.name} {knobs}")


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
