"""The `llm` command, told of the gateway as its documentation says: by a YAML file in its own folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROBLEM


@pytest.fixture
def home(base_url: str, tmp_path: Path) -> Path:
    model = f"- model_id: pika\n  model_name: auto\n  api_base: {base_url}\n"
    (tmp_path / "extra-openai-models.yaml").write_text(model)
    return tmp_path


def llm(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "LLM_USER_PATH": str(home), "OPENAI_API_KEY": "none"}
    return subprocess.run(
        [sys.executable, "-m", "llm", *arguments], env=env, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("options", [[], ["--no-stream"]])
def test_an_answer(home: Path, options: list[str]) -> None:
    done = llm(home, "prompt", "-m", "pika", *options, PROBLEM)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_its_log_counts_the_tokens(home: Path) -> None:
    llm(home, "prompt", "-m", "pika", "--no-stream", PROBLEM)
    assert "output" in llm(home, "logs", "-n", "1", "-u").stdout


def test_errors_are_shown(home: Path, base_url: str) -> None:
    model = f"- model_id: wrong\n  model_name: nano-huge\n  api_base: {base_url}\n"
    (home / "extra-openai-models.yaml").write_text(model)
    done = llm(home, "prompt", "-m", "wrong", PROBLEM)
    assert done.returncode == 1
    assert "nano-huge" in done.stderr
