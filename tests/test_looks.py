"""What is said of an answer, against one text at a time, and without what that answer itself was worth."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from offline.evaluation import likelihood as module
from offline.evaluation.likelihood import likelihood
from offline.evaluation.looks import _cross_fitted, _weighed, _weights
from probes.base import ProbeError
from probes.prompt import Renderer, new_pass
from tests.support.probes import NANO_POOL

SMALL = new_pass(str(NANO_POOL / "nano-small"))
PROBLEMS = ("Find the final number. Take 3. Add 4.", "What is x at the end? x = 7; x += 2; x -= 1; x *= 2;")
ANSWERS = (r"7 \boxed{7}", "9", r"16 \boxed{16} \boxed{16}")


def by_hand(text: Sequence[int], start: int) -> list[float]:
    model = AutoModelForCausalLM.from_pretrained(SMALL.probe_model, dtype=torch.float32)
    with torch.inference_mode():
        logs = model(input_ids=torch.tensor([text])).logits[0].log_softmax(-1).double().numpy()
    before = logs[start - 1 : len(text) - 1]
    own = np.array([row[token] for row, token in zip(before, text[start:], strict=True)])
    entropy = -(np.exp(before) * before).sum(axis=1)
    return [own.sum(), own.min(), (own - before.max(axis=1)).min(), entropy.max(), entropy.mean()]


def test_likelihood_is_that_of_each_answer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer(SMALL)
    prompts = [list(renderer.render([{"role": "user", "content": problem}]).token_ids) for problem in PROBLEMS]
    pairs = [(prompt, renderer.tokenize(answer)) for prompt in prompts for answer in ANSWERS]
    texts, starts = [prompt + answer for prompt, answer in pairs], [len(prompt) for prompt, _ in pairs]
    expected = np.array([by_hand(text, start) for text, start in zip(texts, starts, strict=True)])
    np.testing.assert_allclose(likelihood(SMALL, texts, starts, "cpu"), expected, atol=1e-4)
    monkeypatch.setattr(module, "BATCH_TOKENS", 50)
    np.testing.assert_allclose(likelihood(SMALL, texts, starts, "cpu"), expected, atol=1e-4)


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(ProbeError, match=r"configuration of .*nowhere, whose answers are to be looked at"):
        likelihood(SMALL.model_copy(update={"probe_model": "/nowhere"}), [[1, 2]], [1], "cpu")


def test_an_answer_does_not_help_to_judge_itself() -> None:
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.standard_normal((60, 4, 3)), np.ones((60, 4, 1))], axis=2)
    correct = (rng.random((60, 4)) < 1 / (1 + np.exp(-2 * features[..., 0]))).astype(float)
    found = _cross_fitted(features, correct, seed=0)
    turned = correct.copy()
    turned[7] = 1 - turned[7]
    np.testing.assert_array_equal(_cross_fitted(features, turned, seed=0)[7], found[7])
    whole = _weighed(features, _weights(features, correct))
    assert np.abs(found - whole).max() < 0.2, "what the others say is much the same"
    assert np.corrcoef(found.ravel(), correct.ravel())[0, 1] > 0.5
