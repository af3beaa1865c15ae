"""The Dockerfile: its linter, what it is made of, and its own start, health and stop commands on a live gateway."""

import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from server.launch.vllm_server import free_port
from tests.support import upstream as faults
from tests.support.dashboard import pool_file
from tests.support.deploy_tools import BIN, NEEDS_TOOLS
from tests.support.dockerfile import DOCKERFILE, STAGES, environment
from tests.support.gateway_client import PATH
from tests.support.processes import no_process_left, until

ROOT = Path(__file__).parents[1]
SERVED = ("gateway", "vllm-cpu")


@NEEDS_TOOLS
def test_hadolint_finds_nothing() -> None:
    command = [BIN / "hadolint", "--failure-threshold", "style", DOCKERFILE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_base_image_is_of_a_full_version() -> None:
    [base] = [rest for rest in STAGES[""]["ARG"] if rest.startswith("PYTHON_IMAGE=")]
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.11\.\d+-slim-\w+", base)
    froms = [rest.split()[0] for stage in STAGES.values() for rest in stage.get("FROM", [])]
    assert set(froms) <= {"${PYTHON_IMAGE}", "build-${VARIANT}", *STAGES}


def test_the_gateway_is_what_is_built_where_no_target_is_named() -> None:
    assert list(STAGES)[-1] == "gateway"


@pytest.mark.parametrize("stage", SERVED)
def test_it_runs_as_a_numbered_user_that_owns_nothing_but_where_it_writes(stage: str) -> None:
    instructions = STAGES[stage]
    assert instructions["USER"] == ["10001:10001"]
    assert all("--chown" not in copied for copied in instructions["COPY"])
    assert "HOME=/tmp" in instructions["ENV"][0].split()
    assert instructions["EXPOSE"] == ["8000"]
    assert isinstance(json.loads(instructions["ENTRYPOINT"][0]), list)
    assert not re.search("TOKEN|SECRET|PASSWORD|API_KEY", " ".join(instructions["ENV"]))


def test_all_that_is_copied_is_there_and_not_ignored_and_all_packages_are_copied() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = {
        source
        for stage in STAGES.values()
        for rest in stage.get("COPY", [])
        if not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    for source in copied:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored
    assert (
        set(
            tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
                "packages"
            ]
        )
        <= copied
    )


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_the_lock_pins_all_that_the_image_installs(variant: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {name(line) for line in (ROOT / f"requirements-{variant}.txt").read_text().splitlines() if "==" in line}
    extras = [line for extra in ("engine", "postgres") for line in project["optional-dependencies"][extra]]
    needed = {name(line) for line in (*project["dependencies"], *extras)}
    assert needed | {"hatchling"} <= pinned


def name(requirement: str) -> str:
    return re.split(r"[=<>\[ ]", requirement)[0].lower().replace("_", "-")


@pytest.mark.parametrize("stage", SERVED)
def test_its_health_command_is_that_of_both(stage: str) -> None:
    assert STAGES[stage]["HEALTHCHECK"] == STAGES["gateway"]["HEALTHCHECK"]


def test_all_documented_starts_mount_what_it_writes_to() -> None:
    [folders] = re.findall(r"install --directory --owner=10001 --group=10001 (.*)", STAGES["gateway"]["RUN"][0])
    assert folders.split() == ["/var/cache/pika", "/var/lib/pika"]
    for page in (DOCKERFILE, ROOT / "docker/README.md"):
        text = re.sub(r"\\\n#?", " ", page.read_text())
        [start] = re.findall(r"^[# ]+(docker run .*--read-only.*)$", text, flags=re.MULTILINE)
        words = shlex.split(start)
        assert words[words.index("--tmpfs") + 1] == "/tmp"
        assert {word.partition(":")[2] for word in words} >= set(folders.split())


def as_its_user(command: list[str]) -> list[str]:
    """Where we are root: the command as the image's user, who may write what is its own, and read what lies in a home
    that others cannot enter, as this checkout may."""
    if os.geteuid():
        return command
    uid, gid = STAGES["gateway"]["USER"][0].split(":")
    to_read = "-all,+dac_read_search"
    rights = ["--no-new-privs", f"--inh-caps={to_read}", f"--ambient-caps={to_read}", f"--bounding-set={to_read}"]
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", *rights, *command]


@pytest.fixture
def root() -> Iterator[Path]:
    """A short path: that of the engine's socket, which lies under it, has 107 characters at the most."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_its_own_commands_start_a_gateway_as_its_user_find_it_healthy_and_stop_it(root: Path) -> None:
    """It reads prompts by the nano pool's probes and writes to the image's folders alone, which lie elsewhere here."""
    port = str(free_port())
    [entry], [command] = STAGES["gateway"]["ENTRYPOINT"], STAGES["gateway"]["CMD"]
    _, _, check = STAGES["gateway"]["HEALTHCHECK"][0].partition(" CMD ")
    folders = ("/tmp", "/var/cache/pika", "/var/lib/pika")
    for folder in folders:
        (root / folder[1:]).mkdir(parents=True)
        if os.geteuid() == 0:
            os.chown(root / folder[1:], *map(int, STAGES["gateway"]["USER"][0].split(":")))
    elsewhere = re.compile(f"^(?={'|'.join(folders)})")
    image = {name: elsewhere.sub(str(root), value) for name, value in environment("gateway").items()}
    variables = {**image, "TMPDIR": image["HOME"], "PATH": os.environ["PATH"]}
    ledger = root / "var/lib/pika/ledger.sqlite"
    with faults.running(faults.answers) as upstream:
        pool = str(pool_file(root, upstream.url, ledger={"url": f"sqlite:///{ledger}"}))
        serve = [{"/etc/pika/pool.yaml": pool, "8000": port}.get(word, word) for word in json.loads(command)]
        health = [word.replace("8000", port) for word in json.loads(check)]
        assert json.loads(entry) == ["pika"]
        assert shlex.join(serve).count(port) == 1
        assert health[0] == "python"

        def is_healthy() -> bool:
            asked = as_its_user([sys.executable, *health[1:]])
            return subprocess.run(asked, env=variables, capture_output=True, timeout=30).returncode == 0

        assert not is_healthy()
        with (
            no_process_left(),
            (root / "log").open("wb") as log,
            subprocess.Popen(
                as_its_user([sys.executable, "-m", "server", *serve]), cwd=ROOT, stderr=log, env=variables
            ) as process,
        ):
            try:
                until(lambda: is_healthy() or process.poll() is not None, 60, "the gateway is healthy")
                assert process.poll() is None, (root / "log").read_text()
                body = {"model": "auto", "messages": [{"role": "user", "content": "Begin with 4. Add 3."}]}
                answer = httpx.post(f"http://127.0.0.1:{port}{PATH}", json=body, timeout=30)
                assert (answer.status_code, answer.headers["x-pika-path"]) == (200, "routed")
                process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=30) == 0
            finally:
                process.kill()
        lines = [json.loads(line) for line in (root / "log").read_text().splitlines()]
        assert lines[-1]["message"] == "drained"
        with closing(sqlite3.connect(ledger)) as database:
            assert database.execute("SELECT count(*) FROM decisions").fetchone() == (1,)
