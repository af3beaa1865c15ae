"""The command line: quick help, and one clear line for whatever is wrong before anything starts."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from server.__main__ import COMMANDS, main
from server.config import load
from server.pool import build_pool
from tests.conftest import POOL
from tests.support import upstream as faults
from tests.support.processes import until
from tests.support.serve import served
from tests.test_config import arm, model, pool, write


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", *argv], cwd=POOL.parents[2], capture_output=True, text=True, timeout=60
    )


def test_help_lists_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_shows_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = main([name, "--help"])
    except SystemExit as ended:
        code = ended.code
    assert code == 0
    assert f"pika {name}" in capsys.readouterr().out.partition("examples:")[2]


def test_an_unknown_command_and_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sevre"]) == 2
    assert "unknown command 'sevre'" in capsys.readouterr().err
    assert main([]) == 2


def test_ctrl_c_ends_a_command_with_one_word(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pool.yaml")
    command = [sys.executable, "-m", "server", "check", str(tmp_path / "pool.yaml")]
    with subprocess.Popen(command, cwd=POOL.parents[2], stderr=subprocess.PIPE, text=True) as process:
        with (tmp_path / "pool.yaml").open("w"):  # once the command has begun to read it
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        assert process.stderr is not None
        assert process.stderr.read() == "\ninterrupted\n"


@pytest.mark.parametrize("command", ["serve", "up"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"polcy": {}}, "did you mean 'policy'"),
        ({"arms": arm(success_probability=None, probe="probes/none")}, "no probe folder at"),
        ({"policy": {"tuned": "none.json"}}, "`pika tune` writes it"),
        ({"policy": {"name": "utilty"}}, "unknown policy 'utilty'"),
        ({"policy": {"name": "utility", "variant": "best"}}, "unknown variant 'best'"),
        ({"policy": {"name": "cascade", "thresholds": [0.1, 0.2]}}, "thresholds"),
        ({"models": model(replicas=[{"url": "http://127.0.0.1:1/v1", "api_key_env": "PIKA_NO_SUCH"}])}, "PIKA_NO_SUCH"),
    ],
)
def test_a_configuration_that_cannot_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, changes: dict[str, Any], message: str
) -> None:
    assert main([command, str(write(tmp_path, pool(**changes))), "--port", "0"]) == 2
    assert message in capsys.readouterr().err


def test_serve_wants_urls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, pool(models=model(replicas=[{"launch": {}}])))
    assert main(["serve", str(file), "--port", "0"]) == 2
    assert "`pika up` starts such replicas" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "up"])
def test_a_model_that_nothing_serves(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    file = write(tmp_path, pool(models=model(replicas=[])))
    assert main([command, str(file), "--port", "0"]) == 2
    assert "models.small has no replicas: say where it runs, replicas: [{url:" in capsys.readouterr().err


def test_a_model_that_no_arm_asks_needs_no_replica(tmp_path: Path) -> None:
    spare = {"spare": {key: value for key, value in model()["small"].items() if key != "replicas"}}
    build_pool(load(write(tmp_path, pool(models=model() | spare))))


def test_up_wants_models_that_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, pool(models=model(model="./none", replicas=[{"launch": {}}])))
    assert main(["up", str(file), "--port", "0"]) == 2
    assert "no folder at" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "up"])
def test_a_port_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main([command, str(write(tmp_path, pool())), "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_a_port_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(write(tmp_path, pool())), "--port", "99999"]) == 2
    assert "port 99999 does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_without_keys_strangers_are_kept_out(tmp_path: Path, capsys: pytest.CaptureFixture[str], host: str) -> None:
    file = write(tmp_path, pool())
    assert main(["serve", str(file), "--host", host, "--port", "0"]) == 2
    message = capsys.readouterr().err
    assert f"other machines may reach {host}" in message
    assert "say --public" in message
    file = write(tmp_path, pool(server={"host": host, "port": 0}))
    assert main(["serve", str(file)]) == 2


@pytest.mark.parametrize(("options", "server"), [(["--public"], {}), ([], {"public": True})])
def test_whoever_says_so_is_reached_by_all(tmp_path: Path, options: list[str], server: dict[str, Any]) -> None:
    with served(write(tmp_path, pool(server=server)), None, "--host", "0.0.0.0", *options) as gateway:
        assert gateway.client.get("/health").status_code == 200


@pytest.mark.parametrize("count", ["0", "-1", "65", "many"])
def test_a_number_of_workers_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str], count: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(write(tmp_path, pool())), "--workers", count])
    assert ended.value.code == 2
    assert "--workers" in capsys.readouterr().err


def copy_pool(folder: Path) -> Path:
    """The nano pool's configuration, small model and probes, to be broken by a test."""
    shutil.copytree(POOL.parent, folder / "nano_pool", ignore=shutil.ignore_patterns("*.parquet"))
    return folder / "nano_pool" / "pool.yaml"


def urls_for(file: Path, url: str = "http://127.0.0.1:1/v1") -> Path:
    """Replace each `launch` by a URL."""
    data = yaml.safe_load(file.read_text())
    for one in data["models"].values():
        one["replicas"] = [{"url": url}]
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return file


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_tokenizer_that_is_not_the_probes(tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str) -> None:
    file = urls_for(copy_pool(tmp_path))
    [folder] = {Path(_probe_model(file, name)) for name in ("nano-small", "nano-medium", "nano-large")}
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-170]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert main([command, str(file)]) in (1, 2)
    shown = " ".join("".join(capfd.readouterr()).replace("│", " ").split())
    assert "splits the canary prompt otherwise" in shown


def test_a_probe_model_without_weights(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = urls_for(copy_pool(tmp_path))
    folder = _probe_model(file, "nano-small")
    (folder / "model.safetensors").unlink()
    assert main(["check", str(file)]) == 1
    assert "no weights in safetensors" in " ".join(capfd.readouterr().out.replace("│", " ").split())
    assert main(["serve", str(file), "--port", "0"]) == 2
    error = capfd.readouterr().err
    assert "has no weights in safetensors: give the folder of a whole model" in error
    assert "Traceback" not in error


def _probe_model(file: Path, name: str) -> Path:
    card = json.loads((file.parent / "probes" / name / "config.json").read_text())
    return (file.parent / "probes" / name / card["pass"]["probe_model"]).resolve()


def test_check_says_what_fits_and_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(POOL)]) == 0
    assert "all is well" in capsys.readouterr().out
    file = urls_for(copy_pool(tmp_path))
    assert main(["check", str(file)]) == 1
    assert "does not answer" in capsys.readouterr().out


def test_a_probe_that_knows_no_more_than_length_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = copy_pool(tmp_path)
    config = file.parent / "probes" / "nano-small" / "config.json"
    card = json.loads(config.read_text())
    card["baselines"]["length"]["auroc"] |= {"value": 0.99, "high": 0.995}
    config.write_text(json.dumps(card))
    assert main(["check", str(file)]) == 1
    assert "does not surely know more than" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_serve_answers_and_ends_when_told(tmp_path: Path) -> None:
    """The gateway process itself: real probes and engine, one upstream for all arms; SIGTERM leaves no process."""
    with faults.running(faults.answers) as upstream, socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
        reserved.close()
        file = urls_for(copy_pool(tmp_path), upstream.url)
        process = subprocess.Popen([sys.executable, "-m", "server", "serve", str(file), "--port", str(port)])
        try:
            url = f"http://127.0.0.1:{port}"
            until(lambda: _answers(f"{url}/ready"), 60, "the gateway is ready")
            body = {"model": "auto", "messages": [{"role": "user", "content": "Begin with 2. Add 1."}]}
            answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)
            assert answer.content == faults.WHOLE
            assert 0 <= float(answer.headers["x-pika-success-probability"]) <= 1
            assert "@" in answer.headers["x-pika-probe"]
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False
