"""`pika init` writes a configuration that `pika check` accepts, or says why it cannot."""

import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.__main__ import main
from server.app import create_app
from server.config import load
from tests.conftest import VllmPool
from tests.support.gateway import serving
from tests.support.upstream import Connection, Handler, Request, answers, response, running


def card(name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "object": "model", "owned_by": "vllm", "root": name, "parent": None, "max_model_len": 4096} | (
        fields
    )


def vllm(*cards: dict[str, Any], key: str | None = None, chat: int = 400) -> Handler:
    """A server that says it serves these models."""

    async def handler(request: Request, to: Connection) -> None:
        if key is not None and request.headers.get("authorization") != f"Bearer {key}":
            await to.send(response(401, b'{"error":"Unauthorized"}'))
        elif request.path == "/v1/models":
            await to.send(response(200, json.dumps({"object": "list", "data": cards}).encode()))
        elif request.path == "/version":
            await to.send(response(200, b'{"version":"0.32.0"}'))
        elif request.body == {}:
            await to.send(response(chat, b"{}"))
        else:
            await answers(request, to)

    return handler


def init(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = main(["init", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_real_servers_and_a_gateway_on_what_was_written(
    vllm_pool: VllmPool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pool.yaml"
    code, out, err = init(capsys, *vllm_pool.urls.values(), "-o", file)
    assert (code, err) == (0, "")
    assert f"pika check {file}" in out
    settings = load(file)
    assert set(settings.models) == set(settings.arms) == {"nano-small", "nano-medium", "nano-large"}
    for name, url in vllm_pool.urls.items():
        assert settings.models[name].replicas[0].url == url
        assert settings.models[name].max_context_tokens == 512
        assert Path(settings.models[name].model).name == name
    assert "# vLLM 0." in file.read_text()
    assert main(["check", str(file)]) == 0
    with serving(create_app(settings)) as url:
        body = {"model": "auto", "messages": [{"role": "user", "content": "Begin with 2. Add 1."}], "max_tokens": 4}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200


def test_replicas_adapters_other_names_and_guesses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = card("Qwen/Qwen2.5-72B-Instruct", max_model_len=32768)
    small = card("qwen-small", root="Qwen/Qwen2.5-1.5B-Instruct")
    alias = card("default", root="Qwen/Qwen2.5-1.5B-Instruct")
    adapter = card("sql", root="/adapters/sql", parent="qwen-small", max_model_len=None)
    file = tmp_path / "pool.yaml"
    with (
        running(vllm(large)) as a,
        running(vllm({**large, "max_model_len": 8192})) as b,
        running(vllm(small, alias, adapter)) as c,
    ):
        code, out, _ = init(capsys, a.url, f"127.0.0.1:{b.port}/", c.url, a.url.removesuffix("/v1"), "-o", file)
        assert code == 0
        assert "Qwen2.5-72B-Instruct" in out
        assert main(["check", str(file)]) == 0
    settings = load(file)
    # What a model's name tells of its size makes it dearer and, by guess, better.
    assert list(settings.arms) == ["qwen-small", "sql", "Qwen2.5-72B-Instruct"]
    cheap, _, dear = (settings.models[arm.model] for arm in settings.arms.values())
    assert cheap.usd_per_million_tokens.output < dear.usd_per_million_tokens.output
    guesses = [arm.success_probability or 0 for arm in settings.arms.values()]
    assert guesses == sorted(guesses)
    assert file.read_text().count("GUESS") >= 9
    assert [replica.url for replica in dear.replicas] == [a.url, b.url]
    assert dear.max_context_tokens == 8192  # what all replicas hold
    assert settings.models["sql"].model == "/adapters/sql"
    assert settings.models["sql"].max_context_tokens == 4096
    # Only the adapter's folder need be said anew; and what rollouts need is there to be uncommented.
    marked = [line.strip().split()[1] for line in file.read_text().splitlines() if "as its server names it" in line]
    assert marked == ['"/adapters/sql"']
    file.write_text(file.read_text().replace("# defaults:", "defaults:"))
    assert {arm.defaults["temperature"] for arm in load(file).arms.values()} == {0.7}


def test_a_model_known_by_its_hub_id_is_asked_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pool.yaml"
    with running(vllm(card("Qwen/Qwen2.5-7B-Instruct"))) as upstream:
        assert init(capsys, upstream.url, "-o", file)[0] == 0
        with serving(create_app(load(file))) as url:
            body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
            answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)
    assert answer.headers["x-pika-arm"] == "Qwen2.5-7B-Instruct"
    assert answer.headers["x-model-router-selected-model"] == "Qwen/Qwen2.5-7B-Instruct"
    assert upstream.requests[-1].body["model"] == "Qwen/Qwen2.5-7B-Instruct"
    # What was decided is on record from the first request on.
    assert main(["replay", "--ledger", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["requests"] == 1


def test_a_key_is_named_and_never_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pool.yaml"
    with running(vllm(card("small"), key="s3cret")) as upstream:
        code, _, err = init(capsys, upstream.url, "-o", file)
        assert code == 1
        assert "asks for one (401): --api-key-env names its variable" in err
        code, _, err = init(capsys, upstream.url, "-o", file, "--api-key-env", "POOL_KEY")
        assert code == 2
        assert "POOL_KEY is not set" in err
        monkeypatch.setenv("POOL_KEY", "s3cret")
        assert init(capsys, upstream.url, "-o", file, "--api-key-env", "POOL_KEY")[0] == 0
        assert main(["check", str(file)]) == 0
    assert load(file).models["small"].replicas[0].api_key_env == "POOL_KEY"
    assert "s3cret" not in file.read_text()


def test_a_file_is_replaced_only_when_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pool.yaml"
    file.write_text("mine")
    with running(vllm(card("small"))) as upstream:
        code, _, err = init(capsys, upstream.url, "-o", file)
        assert code == 2
        assert "exists: give another -o, or --force" in err
        assert (file.read_text(), upstream.requests) == ("mine", [])
        code, _, err = init(capsys, upstream.url, "-o", tmp_path, "--force")
        assert code == 2
        assert f"is a folder: give the file as -o {file}" in err
        assert init(capsys, upstream.url, "-o", file, "--force")[0] == 0
        code, _, err = init(capsys, upstream.url, "-o", tmp_path / "absent/pool.yaml")
        assert code == 1
        assert "No such file or directory; choose another -o" in err
    assert list(load(file).arms) == ["small"]


async def _no_json(_: Request, to: Connection) -> None:
    await to.send(response(200, b"<html>hello</html>"))


async def _endless(_: Request, to: Connection) -> None:
    await to.send(b"HTTP/1.1 200 X\r\ncontent-length: 9000000\r\n\r\n")
    while True:
        await to.send(b" " * 65536)


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (_no_json, "does not answer GET /models as vLLM does (status 200): is it a vLLM server?"),
        (_endless, "answers more than 1 MB: is it a vLLM server?"),
        (vllm(), "does not answer GET /models as vLLM does"),
        (vllm(card("small", max_model_len=None)), "does not tell the context length of 'small'"),
        (vllm(card("small", max_model_len="many")), "does not answer GET /models as vLLM does"),
        (vllm(card("auto", owned_by="pika")), "is a gateway of PIKA"),
        (vllm(card("small"), chat=404), "a server with --runner pooling cannot be an arm"),
        (vllm(card("a b: {evil: yes}")), "start its server with another --served-model-name"),
        (vllm(card("auto", root="\x1b[31m")), "does not answer GET /models as vLLM does"),
        (vllm(card("...")), "start its server with another --served-model-name"),
        (vllm(card("small", root="x" * 2000)), "does not answer GET /models as vLLM does"),
    ],
)
def test_servers_of_which_nothing_can_be_made(
    handler: Handler, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(handler) as upstream:
        code, out, err = init(capsys, upstream.url, "-o", tmp_path / "pool.yaml")
    assert (code, out) == (1, "")
    assert message in err
    assert not (tmp_path / "pool.yaml").exists()


def test_hostile_words_stay_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = "x: {policy: {name: random}} # \"' [red] ${HOME} `id` <script>"
    with running(vllm(card("true", root=root), card("1.5", root="[bold]b"))) as upstream:
        assert init(capsys, upstream.url, "-o", tmp_path / "pool.yaml")[0] == 0
    settings = load(tmp_path / "pool.yaml")
    assert settings.models["true"].model == root
    assert settings.policy.name == "utility"
    assert set(settings.arms) == {"true", "1.5"}


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{free.getsockname()[1]}"
    with running(vllm(card("small"))) as upstream, running(_no_json) as other:
        code, _, err = init(capsys, upstream.url, down, other.url, "-o", tmp_path / "pool.yaml")
    assert code == 1
    first, second = err.splitlines()
    assert f"{down}/v1 does not answer" in first
    assert "start the server, or correct the URL" in first
    assert other.url in second


def test_two_models_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(vllm(card("m", root="owner/a"))) as a, running(vllm(card("m", root="owner/b"))) as b:
        code, _, err = init(capsys, a.url, b.url, "-o", tmp_path / "pool.yaml")
    assert code == 1
    assert "both serve 'm', but it is owner/a and owner/b" in err


@pytest.mark.parametrize("url", ["ftp://h/v1", "http://me:secret@h:1", "http://", "http://h:abc"])
def test_words_that_are_no_url(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = init(capsys, url, "-o", tmp_path / "pool.yaml")
    assert code == 2
    assert err.startswith("pika init: ")
    assert len(err.splitlines()) == 1
    assert "secret" not in err
    if url.endswith(":abc"):
        assert "the port of h is no number" in err
