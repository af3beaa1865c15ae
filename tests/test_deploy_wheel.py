"""The image's install commands as the Dockerfile has them, and the gateway that they install, in folders of its own."""

import json
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import httpx
import pytest

from server.dashboard.routes import FILES, FOLDER
from server.launch.vllm_server import free_port
from tests.support import upstream as faults
from tests.support.dockerfile import STAGES
from tests.support.gateway import write_pool
from tests.support.processes import no_process_left, until

pytestmark = pytest.mark.skipif(
    find_spec("hatchling") is None or find_spec("ensurepip") is None,
    reason="hatchling and venv are needed, and no package index is asked for them: make install",
)

ROOT = Path(__file__).parents[1]
PACKAGES = ("server", "probes", "routing_policies", "offline")
ASKS_THE_INDEX = "--constraint"
"""Who installs other projects' packages says in which versions; this environment has the same ones."""


@dataclass(frozen=True)
class Image:
    """What the build stage leaves, with its root elsewhere."""

    root: Path

    def at(self, text: str) -> str:
        """The same with paths below this root."""
        return re.sub(r"(?<![\w/.])/(?=opt/|wheels)", f"{self.root}/", text)

    def run(self, command: str) -> None:
        """As RUN does it, but that nothing is asked of a package index."""
        environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(self.root),
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        done = subprocess.run(
            ["/bin/sh", "-ec", self.at(command)], cwd=self.root / "src", env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    def lend(self, environment: str) -> None:
        """This environment's packages, but for those that it has as a checkout, in place of the index's."""
        [folder] = (self.root / "opt" / environment).glob("lib/python*/site-packages")
        (folder / "lent.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    image = Image(tmp_path_factory.mktemp("image"))
    source = image.root / "src"
    source.mkdir()
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] not in "#!"]
    ignored = shutil.ignore_patterns(*(pattern.rpartition("/")[2] for pattern in patterns if pattern != "*"))
    for copied in STAGES["build"]["COPY"]:
        *names, target = copied.split()
        for name in names:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / target, ignore=ignored)
            else:
                shutil.copy(ROOT / name, source / target)
    needs, installs = STAGES["build"]["RUN"]
    image.run(" && ".join(step for step in needs.split(" && ") if ASKS_THE_INDEX not in step))
    image.lend("build")
    image.run(installs)
    image.lend("pika")
    return image


def test_what_is_to_be_installed_besides_is_what_the_project_names(image: Image) -> None:
    needed = (image.root / "src/needed.txt").read_text().splitlines()
    assert {"sqlalchemy", "torch", "psycopg[binary]"} <= {re.split("[<>=]", line)[0] for line in needed}


def test_the_wheel_has_every_file_that_is_copied(image: Image) -> None:
    [wheel] = (image.root / "wheels").iterdir()
    packed = {name for name in ZipFile(wheel).namelist() if name.partition("/")[0] in PACKAGES}
    source = image.root / "src"
    files = (file for package in PACKAGES for file in (source / package).rglob("*") if file.is_file())
    assert packed == {file.relative_to(source).as_posix() for file in files}


def test_it_serves_requests_dashboard_and_ledger_from_an_empty_folder(image: Image, tmp_path: Path) -> None:
    empty, port = tmp_path / "empty", str(free_port())
    empty.mkdir()
    ledger = tmp_path / "ledger.sqlite"
    [entry], [command] = STAGES["gateway"]["ENTRYPOINT"], STAGES["gateway"]["CMD"]
    [pika] = json.loads(entry)
    # Nothing of this checkout is on its path.
    environment = {
        "PATH": f"{image.root}/opt/pika/bin:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with faults.running(faults.answers) as upstream:
        pool = write_pool(tmp_path, {"small": [upstream.url]}, ledger={"url": f"sqlite:///{ledger}"})
        serve = [{"/etc/pika/pool.yaml": str(pool), "8000": port}.get(word, word) for word in json.loads(command)]
        with (
            no_process_left(),
            (tmp_path / "log").open("wb") as log,
            subprocess.Popen(
                [image.root / "opt/pika/bin" / pika, *serve], cwd=empty, stderr=log, env=environment
            ) as process,
            httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
        ):
            try:
                until(lambda: process.poll() is not None or is_healthy(client), 60, "the gateway is healthy")
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert client.get("/dashboard").content == (FOLDER / "index.html").read_bytes()
                for path, (body, _) in FILES.items():
                    assert client.get(f"/dashboard/static/{path}").content == body, path
                asked = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
                assert client.post("/v1/chat/completions", json=asked).status_code == 200
                until(
                    lambda: len(client.get("/dashboard/data/decisions").json()["decisions"]) == 1, 20, "it is recorded"
                )
                process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=30) == 0
            finally:
                process.kill()
    assert ledger.exists()
    assert not list(empty.iterdir())
    where = f"import {', '.join(PACKAGES)}; print(*({', '.join(f'{name}.__file__' for name in PACKAGES)}))"
    python = [image.root / "opt/pika/bin/python", "-c", where]
    done = subprocess.run(python, cwd=empty, env=environment, capture_output=True, text=True)
    assert [Path(file).is_relative_to(image.root) for file in done.stdout.split()] == [True] * 4, done


def test_the_installed_environment_installs_nothing_more(image: Image) -> None:
    assert not list((image.root / "opt/pika/bin").glob("pip*"))
    assert not list(image.root.glob("opt/pika/lib/python*/site-packages/pip"))


def is_healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False
