"""`pika keys`: a key is shown once, the file keeps what people wrote in it, and is whole or not there."""

import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from server.commands.keys import main
from server.keys.file import read_keys
from tests.support import upstream as faults
from tests.support.gateway import write_pool
from tests.support.processes import until
from tests.support.serve import BODY, ROOT, served
from tests.test_workers import PATH


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def added(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The key that `pika keys add` prints."""
    assert main(["add", *arguments]) == 0
    return capsys.readouterr().out.strip()


def test_a_key_is_shown_once_and_kept_as_a_hash(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = added(capsys, "team-a", "--file", str(file), "--arms", "small,large", "--requests-per-minute", "60",
                "--tokens-per-minute", "1000", "--usd-per-day", "0.5", "--policy", "utility", "--lambda", "0.2",
                "--policies", "cascade")  # fmt: skip
    assert re.fullmatch(r"pika-[A-Za-z0-9_-]{43}", key)
    assert added(capsys, "team-b", "--file", str(file)) != key
    assert key not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    keys = read_keys(file)
    entry = keys["team-a"].entry
    assert entry.sha256 == sha256(key.encode()).hexdigest()
    assert entry.created is not None
    assert (entry.arms, entry.policies, entry.routing) == (
        ["small", "large"],
        ["cascade"],
        {"policy": "utility", "lambda": 0.2},
    )
    assert (entry.requests_per_minute, entry.tokens_per_minute, entry.usd_per_day) == (60, 1000, 0.5)
    assert main(["list", "--file", str(file)]) == 0
    listed = capsys.readouterr().out
    assert "small,large" in listed
    assert "team-b" in listed
    assert entry.sha256[:8] not in listed
    assert key not in listed


WRITTEN = """\
# keys of our teams

team-a:   # asks for 50 USD
  sha256: {a}

  arms: [small]
# before b
"team-b": {{sha256: {b}}}
team-c:
  sha256: {c}
# the end
"""


def test_what_people_wrote_stays(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(WRITTEN.format(a="a" * 64, b="b" * 64, c="c" * 64))
    added(capsys, "team-d", "--file", str(file))
    assert list(read_keys(file)) == ["team-a", "team-b", "team-c", "team-d"]
    assert file.read_text().startswith(WRITTEN.format(a="a" * 64, b="b" * 64, c="c" * 64))
    for name in ("team-a", "team-b", "team-d"):
        assert main(["revoke", name, "--file", str(file)]) == 0
    left = file.read_text()
    assert left == f"# keys of our teams\n\n# before b\nteam-c:\n  sha256: {'c' * 64}\n# the end\n"


@pytest.mark.parametrize("text", ["{team-a: {sha256: %s}}\n" % ("a" * 64), "  team-a:\n    sha256: %s\n" % ("a" * 64)])
def test_what_cannot_be_changed_safely_stays_as_it_is(
    file: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(text)
    assert main(["add", "team-b", "--file", str(file)]) == 2
    assert "cannot be changed here" in capsys.readouterr().err
    assert file.read_text() == text
    assert not list(file.parent.glob(".keys*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["revoke", "team-x"], "has no key named 'team-x': did you mean 'team-a'?"),
        (["add", "team-a"], "has a key named team-a"),
        (["add", "a b"], "names have up to 64 letters"),
        (["add", "team-b", "--usd-per-day", "-1"], "--usd-per-day: Input should be greater than 0"),
        (["add", "team-b", "--requests-per-minute", "0"], "--requests-per-minute"),
        (["add", "team-b", "--file", "/nowhere/keys.yaml"], "cannot write /nowhere/keys.yaml: No such file"),
        (["list", "--file", "/nowhere/keys.yaml"], "there is no /nowhere/keys.yaml; `pika keys add NAME --file"),
    ],
)
def test_wrong_input_is_named(file: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    added(capsys, "team-a", "--file", str(file))
    before = file.read_text()
    if "--file" not in arguments:
        arguments = [*arguments, "--file", str(file)]
    assert main(arguments) == 2
    assert said in capsys.readouterr().err
    assert file.read_text() == before


def test_the_configuration_says_where_and_which_arms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_pool(tmp_path, {"small": ["http://127.0.0.1:1/v1"]})
    assert main(["add", "team-a", "--config", str(config)]) == 2
    assert "asks for no keys: add `keys: {file: keys.yaml}`" in capsys.readouterr().err
    config = write_pool(tmp_path, {"small": ["http://127.0.0.1:1/v1"]}, keys={"file": "own.yaml"})
    added(capsys, "team-a", "--config", str(config), "--arms", "small")
    assert list(read_keys(tmp_path / "own.yaml")) == ["team-a"]
    assert main(["add", "team-b", "--config", str(config), "--arms", "smal"]) == 2
    assert "names the unknown arm 'smal'" in capsys.readouterr().err
    assert main(["add", "team-b", "--config", str(config), "--usd-per-day", "5"]) == 2
    assert "add `ledger: {}` to" in capsys.readouterr().err


def test_many_at_once_lose_nothing(file: Path) -> None:
    command = [sys.executable, "-m", "server", "keys", "add", "--file", str(file)]
    with ThreadPoolExecutor(4) as pool:
        done = list(
            pool.map(
                lambda i: subprocess.run([*command, f"team-{i}"], cwd=ROOT, capture_output=True, check=True), range(8)
            )
        )
    assert len({one.stdout for one in done}) == 8
    assert set(read_keys(file)) == {f"team-{i}" for i in range(8)}


def test_workers_share_keys_and_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each request on a connection of its own, which any worker may take."""
    with faults.running(faults.answers) as upstream:
        config = write_pool(tmp_path, {"small": [upstream.url]}, keys={"file": "keys.yaml"})
        limited = added(capsys, "limited", "--config", str(config), "--requests-per-minute", "40")
        with served(config, None, "--workers", "2") as gateway:

            def ask(key: str) -> int:
                headers = {"authorization": f"Bearer {key}"}
                return httpx.post(
                    f"{gateway.client.base_url}{PATH}", json=BODY, headers=headers, timeout=30
                ).status_code

            with ThreadPoolExecutor(8) as pool:
                codes = list(pool.map(ask, [limited] * 120))
            assert set(codes) == {200, 429}
            assert 40 <= codes.count(200) <= 50  # a bucket's worth, and what came in meanwhile
            assert codes.count(200) == len(upstream.requests)
            # Ten times in a row: both workers know it.
            new = added(capsys, "new", "--config", str(config))
            until(lambda: all(ask(new) == 200 for _ in range(10)), 5, "all workers know the new key")
            assert main(["revoke", "new", "--config", str(config)]) == 0
            until(lambda: all(ask(new) == 401 for _ in range(10)), 5, "no worker takes the revoked key")
            gateway.hang_up("reloaded:")
            assert ask(limited) in (200, 429)
            log = "".join(gateway.log)
            assert limited not in log
            assert new not in log
