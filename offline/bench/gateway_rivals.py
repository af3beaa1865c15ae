"""What `pika bench gateway` measures: this gateway in five configurations, nginx, LiteLLM; each one process."""

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import yaml

from offline.bench.gateway_client import KEY
from offline.bench.servers import HOST, Server, free_port, running

NANO_POOL = Path(__file__).parents[1] / "nano_pool"
STREAMS = 4096
"""Requests in flight that a gateway admits here: thousands of streams are to be open at once."""
DIRECT, OURS, RECORDED, PROBED = "no gateway", "pika, min_cost", "pika, ledger", "pika, probe"
KEYED, BUDGETED = "pika, key", "pika, budget"
NGINX, LITELLM = "nginx", "LiteLLM"
LIMITS = {"requests_per_minute": 10**9, "tokens_per_minute": 10**12}
"""Of a key that is never refused."""
BUDGET = {"usd_per_day": 1e6}

Started = AbstractContextManager[Server]


@dataclass(frozen=True)
class System:
    """One thing between client and upstream, or none."""

    name: str
    start: Callable[[int, Path], Started]
    """Takes the upstream's port and a scratch folder."""
    verbatim: bool = True
    """Whether it passes on the upstream's bytes; else it writes answers anew."""
    rival: bool = False
    """Another's, left out where it does not start."""


def upstream(_: int, scratch: Path) -> Started:
    port = free_port()
    command = [sys.executable, "-P", "-m", "offline.bench.gateway_upstream", str(port)]
    return running(command, port, "/health", scratch / "upstream.log")


def pika(config: Path, scratch: Path) -> Started:
    """This gateway, as its users start it."""
    port = free_port()
    command = [sys.executable, "-P", "-m", "server", "serve", str(config), "--host", HOST, "--port", str(port)]
    return running(command, port, "/ready", scratch / f"{config.stem}.log")


def min_cost(at: int, scratch: Path, **sections: object) -> Started:
    """Three arms, no probe: all that a request costs but the reading of its prompt."""
    models, arms = {}, {}
    for index, name in enumerate(("small", "medium", "large")):
        models[name] = {
            "model": f"owner/{name}",
            "max_context_tokens": 4096,
            "usd_per_million_tokens": {"input": 0.1 * 10**index, "output": 0.4 * 10**index},
            "replicas": [{"url": f"http://{HOST}:{at}/v1"}],
        }
        mean_tokens = {"input": 60, "output": 60}
        arms[name] = {"model": name, "success_probability": 0.5 + 0.2 * index, "mean_tokens": mean_tokens}
    pool = {"models": models, "arms": arms, "policy": {"name": "min_cost"}, **sections}
    return pika(_write(scratch / "min_cost.yaml", pool), scratch)


def recorded(at: int, scratch: Path) -> Started:
    """The same, every decision written to a ledger."""
    return min_cost(at, scratch, ledger={})


def keyed(at: int, scratch: Path, **allowed: float) -> Started:
    """The same, under a key with limits on requests and tokens."""
    entry = {"sha256": sha256(KEY.encode()).hexdigest(), **LIMITS, **allowed}
    (scratch / "keys.yaml").write_text(yaml.safe_dump({"bench": entry}), encoding="utf-8")
    return min_cost(at, scratch, ledger={}, keys={"file": "keys.yaml"})


def budgeted(at: int, scratch: Path) -> Started:
    """The same, and what a request may cost is reserved in the key's budget before it is sent."""
    return keyed(at, scratch, **BUDGET)


def nano(at: int, scratch: Path) -> Started:
    """The nano pool with its own probes, one upstream for all of its models."""
    # Beside the configuration lies what it names, as in the pool's own folder.
    for entry in NANO_POOL.iterdir():
        (scratch / entry.name).symlink_to(entry)
    pool = yaml.safe_load((NANO_POOL / "pool.yaml").read_text(encoding="utf-8"))
    for model in pool["models"].values():
        model["replicas"] = [{"url": f"http://{HOST}:{at}/v1"}]
    return pika(_write(scratch / "nano.yaml", pool), scratch)


def _write(file: Path, config: dict[str, object]) -> Path:
    limits = config.get("limits")
    config["limits"] = {**(limits if isinstance(limits, dict) else {}), "in_flight": STREAMS}
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return file


NGINX_CONF = """\
daemon off; master_process off; worker_processes 1; worker_rlimit_nofile 20000;
pid {scratch}/nginx.pid; error_log {scratch}/nginx.log warn;
events {{ worker_connections 10000; }}
http {{
  access_log {scratch}/access.log;
  client_body_temp_path {scratch}/body; proxy_temp_path {scratch}/proxy; fastcgi_temp_path {scratch}/fastcgi;
  uwsgi_temp_path {scratch}/uwsgi; scgi_temp_path {scratch}/scgi;
  upstream up {{ server {host}:{at}; keepalive 256; }}
  server {{
    listen {host}:{port} backlog=4096; keepalive_requests 1000000; client_max_body_size 10m;
    location / {{
      proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""


def nginx(program: str, at: int, scratch: Path) -> Started:
    """A plain reverse proxy that keeps connections, writes a log line and passes streams on as they come."""
    port = free_port()
    config = scratch / "nginx.conf"
    config.write_text(NGINX_CONF.format(scratch=scratch, host=HOST, at=at, port=port), encoding="utf-8")
    command = [program, "-e", "stderr", "-p", str(scratch), "-c", str(config)]
    return running(command, port, "/health", scratch / "nginx.out")


def litellm(program: str, at: int, scratch: Path) -> Started:
    """LiteLLM's proxy with one model, one worker, nothing stored."""
    port = free_port()
    model = {"model": "openai/upstream", "api_base": f"http://{HOST}:{at}/v1", "api_key": "none"}
    models = [{"model_name": "auto", "litellm_params": model}]
    config = scratch / "litellm.yaml"
    config.write_text(yaml.safe_dump({"model_list": models}), encoding="utf-8")
    command = [program, "--config", str(config), "--host", HOST, "--port", str(port), "--num_workers", "1"]
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "PYTHONPATH": ""}
    env["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"  # a key would be looked up; loopback alone
    return running(command, port, "/health/liveliness", scratch / "litellm.log", env)


def systems(litellm_program: str | None) -> list[System]:
    """All that can be measured here."""
    found = [
        System(DIRECT, upstream),
        System(OURS, min_cost),
        System(RECORDED, recorded),
        System(KEYED, keyed),
        System(BUDGETED, budgeted),
        System(PROBED, nano),
    ]
    # Debian keeps it where only root's shells look.
    if nginx_program := shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])):
        found.append(System(NGINX, lambda at, scratch: nginx(nginx_program, at, scratch), rival=True))
    if litellm_program:
        found.append(System(LITELLM, lambda at, scratch: litellm(litellm_program, at, scratch), False, True))
    return found
