"""How likely a model finds the tokens of an answer that it gave: one pass over prompt and answer, none generated."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from probes.base import FloatArray
from probes.card import Pass
from probes.engine.batch import micro_batches
from probes.engine.loading import find_device, from_safetensors, read_config

FEATURES = 5
BATCH_TOKENS = 1024
"""Fewer than a prefill's: the vocabulary's logits of every answer token are held at once."""


def likelihood(pass_: Pass, texts: Sequence[Sequence[int]], starts: Sequence[int], device: str = "auto") -> FloatArray:
    """Of n answers, (n, 5), in nats and at temperature 1: the sum of the log-probabilities of their tokens; the least
    of them; how far a token was at most behind the likeliest one; largest and mean entropy.

    A model that answers at once says with the token of the answer itself how sure it is. Sampling may have taken one
    that it finds unlikely, which nothing could tell before.

    Args:
        texts: prompts with their answers, as token ids.
        starts: where the answers begin.

    Raises:
        ProbeError: the model is not causal, cannot be loaded, or a tensor of it is missing; or there is no such device.
    """
    name = f"{pass_.probe_model}, whose answers are to be looked at"
    model = from_safetensors(AutoModelForCausalLM, pass_, name, read_config(pass_, name))
    nn.Module.to(model, find_device(device))
    found = np.empty((len(texts), FEATURES))
    with torch.inference_mode():
        for rows in micro_batches([len(text) for text in texts], BATCH_TOKENS):
            batch, begin = [texts[row] for row in rows], [starts[row] for row in rows]
            token_ids = torch.zeros(len(rows), len(batch[0]), dtype=torch.long)  # (batch, T), the longest one first
            for i, text in enumerate(batch):
                token_ids[i, : len(text)] = torch.tensor(text)
            first = min(begin)
            tokens = _tokens(model, token_ids, first)  # (batch, T - first, 3)
            for row, text, start, values in zip(rows, batch, begin, tokens, strict=True):
                found[row] = _summary(values[start - first : len(text) - first])
    return found


def _tokens(model: PreTrainedModel, token_ids: Tensor, first: int) -> NDArray[np.float64]:
    """Of tokens from the first on: their log-probability, the likeliest one's, the entropy, (batch, T - first, 3)."""
    token_ids = token_ids.to(model.device)
    # Padded on the right, a causal model needs no mask. A token's probability is read at the one before it.
    before = torch.arange(first - 1, token_ids.shape[1] - 1, device=model.device)
    logits = model(input_ids=token_ids, use_cache=False, logits_to_keep=before).logits
    logs = logits.float().log_softmax(dim=-1)  # (batch, T - first, vocabulary)
    own = logs.gather(-1, token_ids[:, first:, None])
    entropy = -(logs.exp() * logs).sum(dim=-1, keepdim=True)
    values: NDArray[np.float64] = torch.cat([own, logs.amax(-1, keepdim=True), entropy], -1).double().cpu().numpy()
    return values


def _summary(tokens: NDArray[np.float64]) -> FloatArray:
    """(tokens, 3) -> (5,)"""
    own, likeliest, entropy = tokens.T
    return np.array([own.sum(), own.min(), (own - likeliest).min(), entropy.max(), entropy.mean()])
