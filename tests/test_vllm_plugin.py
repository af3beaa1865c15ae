"""What vLLM's plug-in reads is what Transformers computes: real vLLM, tiny checkpoints, chunks, cached prefixes."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from probes.artifact import Artifact
from probes.base import Inputs
from probes.engine import heads
from probes.engine.next_token import next_token_statistics
from tests.support.tiny_models import CONFIGS, DEPTH, VOCABULARY, checkpoint, linear, mlp
from tests.support.vllm_child import TOGETHER

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[1]
PROMPTS = 48
CUT = "Llama"
"""The architecture of which a part is read; of the others all, up to the final norm."""


@dataclass(frozen=True)
class Scored:
    """A checkpoint, its probes and what vLLM said."""

    folder: Path
    prompts: list[list[int]]
    artifacts: list[Artifact]

    @cached_property
    def columns(self) -> np.ndarray:
        """Scores, then the activations that they are of, site by site."""
        return np.load(self.folder / "scores.npy")

    @cached_property
    def facts(self) -> dict[str, Any]:
        return json.loads((self.folder / "facts.json").read_text())

    @cached_property
    def expected(self) -> Inputs:
        """Transformers' hidden states of the whole model, in the order of the pooler's sites."""
        sites = sorted(
            {site for artifact in self.artifacts for site in heads.sites(artifact)},
            key=lambda site: (site.layer, site.position),
        )
        model = AutoModelForCausalLM.from_pretrained(
            self.folder / "model", dtype=torch.float32, attn_implementation="eager"
        ).eval()
        read, next_token = {site: [] for site in sites}, []
        for prompt in self.prompts:
            with torch.no_grad():
                output = model(torch.tensor([prompt]), output_hidden_states=True)
            next_token.append(next_token_statistics(output.logits[:, -1])[0].double().numpy())
            for site, rows in read.items():
                rows.append(output.hidden_states[site.layer][0, max(0, len(prompt) + site.position)].numpy())
        lengths = np.array([len(prompt) for prompt in self.prompts])
        activations = {site: np.stack(rows) for site, rows in read.items()}
        return Inputs((), lengths, activations, next_token=np.stack(next_token))


def some_prompts() -> list[list[int]]:
    """Of 1 to 300 tokens, longer than chunks and sliding windows; some share their first 90, nearly three blocks."""
    rng = np.random.default_rng(0)
    shared = rng.integers(3, VOCABULARY, size=90).tolist()
    own = [rng.integers(3, VOCABULARY, size=n).tolist() for n in (1, 2, *rng.integers(5, 210, size=PROMPTS - 2))]
    return [shared + prompt if i % 3 == 2 else prompt for i, prompt in enumerate(own)]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scored]:
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: make install")
    folder, prompts, found = tmp_path_factory.mktemp("vllm"), some_prompts(), {}
    (folder / "prompts.json").write_text(json.dumps(prompts))
    for architecture in CONFIGS:
        one = folder / architecture
        model = checkpoint(architecture, one / "model")
        artifacts = [
            linear(one / "probes/a", model, layer=1, seed=1),
            linear(one / "probes/b", model, layer=3, position=-3, seed=2, heads=True),
        ]
        if architecture != CUT:
            artifacts.append(linear(one / "probes/b2", model, layer=DEPTH, seed=5))
        if architecture == "GptOss":
            artifacts += [
                mlp(one / "probes/c", model, layer=DEPTH, position=-2, seed=3),
                linear(one / "probes/d", model, layer=0, position=-4, seed=4),
            ]
        found[architecture] = Scored(one, prompts, artifacts)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "tests.support.vllm_child", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_hidden_states_are_those_of_transformers(architecture: str, scored: dict[str, Scored]) -> None:
    one = scored[architecture]
    expected = list(one.expected.activations.items())
    assert any(site.layer == DEPTH for site, _ in expected) == (architecture != CUT)
    found = np.split(one.columns[:, 3 * len(one.artifacts) :], len(expected), axis=1)
    for (site, states), ours in zip(expected, found, strict=True):
        apart = np.linalg.norm(ours - states, axis=1) / np.linalg.norm(states, axis=1)
        assert apart.max() < 1e-5, site
    together = max(one.facts["prompts_of_steps"])
    assert together >= 8 if architecture in TOGETHER else together >= 2


@pytest.mark.timeout(900)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_scores_are_those_of_transformers_hidden_states(architecture: str, scored: dict[str, Scored]) -> None:
    one = scored[architecture]
    scores = heads.scores(one.artifacts, one.expected)
    expected = np.concatenate([scores.success, scores.output_tokens, scores.activation_percentile], axis=1)
    known = expected[:, ~np.isnan(expected).all(axis=0)]
    assert known.std(axis=0).min() > 0.01  # they tell prompts apart
    np.testing.assert_allclose(one.columns[:, : expected.shape[1]], expected, rtol=1e-5, atol=1e-6)
    if architecture != "Mistral":  # all its layers have windows: what has left them is not kept for other prompts
        assert max(one.facts["cached"]) >= 64  # the shared prefix came from the cache


@pytest.mark.timeout(900)
def test_only_what_is_read_is_built(scored: dict[str, Scored]) -> None:
    for architecture, one in scored.items():
        names = one.facts["parameters"]
        blocks = {int(name.split(".")[2]) for name in names if name.startswith("model.layers.")}
        assert one.facts["class"] == f"Probe{architecture}ForCausalLM"
        assert blocks == set(range(3 if architecture == CUT else DEPTH))
        next_token = architecture == "GptOss"  # its statistics are read
        assert any(name.startswith("lm_head.") for name in names) == next_token
