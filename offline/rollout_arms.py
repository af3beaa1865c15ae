"""The arms that `pika rollouts` samples, as its arguments and the pool's configuration say."""

import difflib
import os
from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec

from pydantic import ValidationError

from offline.samplers import SampledArm
from probes.json_text import problems
from server import config
from server.sections import pool

EVERY_ARM = "*"
"""In place of an arm's name: for all that are not named."""


class UsageError(Exception):
    """The command cannot mean anything; the message names the fix."""


def sampled_arms(settings: config.Settings, args: Namespace) -> dict[str, SampledArm]:
    """By name, in the order asked for.

    Raises:
        UsageError: an argument is wrong, or does not go with the configuration.
    """
    asked = pairs(args.url, "--url small=http://127.0.0.1:8101/v1")
    urls = {arm: [_base_url(arm, url) for url in text.split(",")] for arm, text in asked.items()}
    systems = pairs(args.system, "--system small='You are a mathematician.'")
    suffixes = pairs(args.suffix, "--suffix small=' Think step by step.'")
    names = args.arms.split(",") if args.arms else list(settings.arms)
    for name in (*names, *urls, *({*systems, *suffixes} - {EVERY_ARM})):
        if name not in settings.arms:
            near = difflib.get_close_matches(name, settings.arms, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"arms: {', '.join(settings.arms)}"
            raise UsageError(f"unknown arm {name!r}: {hint}")
    if args.runner == "vllm" and urls:
        raise UsageError("--url goes with --runner endpoint or ray")
    if args.runner == "vllm" and find_spec("vllm") is None:
        raise UsageError("--runner vllm needs vLLM: run `make install`, or sample from a server with --runner endpoint")
    if args.runner == "ray" and find_spec("ray") is None:
        raise UsageError("--runner ray needs Ray: pip install 'pika-router[ray]'")
    if args.runner == "endpoint" and args.replicas > 1:
        raise UsageError("--replicas goes with --runner vllm or ray; several endpoints of an arm: --url ARM=URL,URL")
    return {
        name: _arm(
            settings,
            name,
            args,
            urls=urls.get(name, []),
            system_prompt=systems.get(name, systems.get(EVERY_ARM)),
            prompt_suffix=suffixes.get(name, suffixes.get(EVERY_ARM, "")),
        )
        for name in names
    }


def _arm(
    settings: config.Settings,
    name: str,
    args: Namespace,
    urls: Sequence[str],
    system_prompt: str | None,
    prompt_suffix: str,
) -> SampledArm:
    arm = settings.arms[name]
    model = settings.models[arm.model]
    fields = dict(arm.defaults)
    for field, value in (("temperature", args.temperature), ("max_tokens", args.max_tokens)):
        if value is not None and arm.request.get(field, value) != value:
            raise UsageError(f"arm {name!r} is defined by {field} {arm.request[field]}: leave out --{_flag(field)}")
        if value is not None:
            fields[field] = value
    fields |= arm.request
    if missing := [field for field in ("temperature", "max_tokens") if field not in fields]:
        flags = " and ".join(f"--{_flag(field)}" for field in missing)
        raise UsageError(
            f"arm {name!r} has no {' and no '.join(missing)}: give {flags}, or say so in the arm's defaults"
        )
    if args.k > 1 and fields["temperature"] == 0:
        raise UsageError(f"arm {name!r}: at temperature 0 all answers are the same: give --k 1, or a --temperature")
    launches = [replica.launch for replica in model.replicas if replica.launch is not None]
    replicas = [(url, "none") for url in urls]
    if args.runner != "vllm":
        replicas = replicas or _endpoints(model)
    if args.runner == "endpoint" and not replicas:
        raise UsageError(f"arm {name!r}: no replica of {arm.model!r} has a url; give --url {name}=http://HOST:PORT/v1")
    return SampledArm(
        name=name,
        model=arm.model,
        reference=model.model,
        source=settings.model_source(model.model),
        max_context_tokens=model.max_context_tokens,
        fields=fields,
        urls=tuple(base_url for base_url, _ in replicas),
        api_keys=tuple(key for _, key in replicas),
        engine_args=tuple(launches[0].args) if launches else (),
        env=_environment(launches),
        system_prompt=system_prompt,
        prompt_suffix=prompt_suffix,
    )


def _base_url(arm: str, url: str) -> str:
    """Of an `--url`, as a configuration's would be."""
    try:
        return pool.Replica(url=url).url or ""
    except ValidationError as error:
        raise UsageError(f"--url of {arm}: {problems(error)}") from None


def _endpoints(model: pool.Model) -> list[tuple[str, str]]:
    """(base URL, API key) of each replica that runs already; servers without a key are sent a word."""
    endpoints = []
    for replica in model.replicas:
        if replica.url is not None:
            key = os.environ.get(replica.api_key_env, "") if replica.api_key_env else "none"
            if not key:
                raise UsageError(f"the environment variable {replica.api_key_env} holds no key for {replica.url}")
            endpoints.append((replica.url, key))
    return endpoints


def _environment(launches: Sequence[pool.Launch]) -> dict[str, str]:
    """The first one's, with the GPUs of all: their processes do not run while rollouts do."""
    gpus = list(dict.fromkeys(gpu for launch in launches for gpu in launch.gpus))
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))} if gpus else {}
    return {**(launches[0].env if launches else {}), **visible}


def pairs(texts: Sequence[str], example: str) -> dict[str, str]:
    """NAME=VALUE, each name once."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not value or name in pairs:
            raise UsageError(f"{text!r}: write NAME=VALUE, each name once, such as {example}")
        pairs[name] = value
    return pairs


def _flag(field: str) -> str:
    return field.replace("_", "-")
