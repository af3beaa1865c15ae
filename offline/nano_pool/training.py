"""Trains one nano model: Muon for its matrices, AdamW for the rest, at a constant rate until it knows enough.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from offline.nano_pool import tokenizer as tokens
from offline.nano_pool.recipe import Recipe
from offline.nano_pool.rows import HEAD, TAIL, Batch, batch, chains, direct_row, stepwise_row
from offline.verifiers.boxed import Boxed

MATRIX_RATE = 0.004
OTHER_RATE = 0.006
MOMENTUM = 0.9
BETAS = (0.9, 0.98)
SMOOTHING = 0.98
"""Of the loss that is compared with the trigger."""
LOGGED = 20
"""Steps over which each loss on record is averaged."""
HIDDEN = -1e9
"""Added to an attention score that must not count."""

OnStep = Callable[[int, float], None]
"""Called with the steps done and the smoothed loss."""


@dataclass(frozen=True)
class Trained:
    model: LlamaForCausalLM
    record: dict[str, Any]


def new_model(recipe: Recipe, start: LlamaForCausalLM | None = None) -> LlamaForCausalLM:
    """Of random weights; the first layers, and what stands around them, those of `start` where it is given."""
    model = LlamaForCausalLM(  # type: ignore[no-untyped-call]  # untyped there
        LlamaConfig(  # type: ignore[call-arg]  # fields are the base class's
            vocab_size=tokens.VOCABULARY,
            hidden_size=recipe.d_model,
            intermediate_size=3 * recipe.d_model,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.d_model // 32,
            num_key_value_heads=recipe.d_model // 32,
            head_dim=32,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 30.0},  # small, for prompts are short
            max_position_embeddings=512,
            rms_norm_eps=1e-6,
            bos_token_id=None,
            eos_token_id=tokens.END,
            pad_token_id=tokens.PAD,
            attn_implementation="eager",  # at this size quicker than the fused kernel, whose backward pass is slow
        )
    )
    if start is not None:
        model.load_state_dict(start.state_dict(), strict=False)
        with torch.no_grad():
            for layer in model.model.layers[start.config.num_hidden_layers :]:
                # What these two write is added to what comes in: of zeros, the layer is an identity.
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
    return model


def train(
    recipe: Recipe,
    tokenizer: Tokenizer,
    seed: int,
    start: LlamaForCausalLM | None = None,
    on_step: OnStep = lambda steps, loss: None,
) -> Trained:
    """Equal seeds and processors give equal models."""
    torch.manual_seed(seed)
    model = new_model(recipe, start)
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, momentum=MOMENTUM, weight_decay=0.0),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=BETAS, weight_decay=0.0),
    ]
    began, smoothed, falls_from, losses = time.monotonic(), None, None, []
    window: list[float] = []
    step = 0
    for step, rows in enumerate(_batches(recipe, tokenizer, seed), start=1):
        loss, per_answer = _loss(model, rows)
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # untyped there
        for optimiser in optimisers:
            optimiser.step()
        smoothed = per_answer if smoothed is None else SMOOTHING * smoothed + (1 - SMOOTHING) * per_answer
        window.append(per_answer)
        if len(window) == LOGGED:
            losses.append(round(sum(window) / LOGGED, 4))
            window.clear()
        if falls_from is None and (smoothed < recipe.trigger or step >= recipe.max_steps - recipe.decay_steps):
            falls_from = step
        if falls_from is not None:
            share = 1 - (step - falls_from) / recipe.decay_steps
            if share <= 0:
                break
            for optimiser, rate in zip(optimisers, (MATRIX_RATE, OTHER_RATE), strict=True):
                optimiser.param_groups[0]["lr"] = rate * share
        on_step(step, smoothed)
    record = {
        "recipe": asdict(recipe),
        "seed": seed,
        "steps": step,
        "falls_from": falls_from,
        f"loss_every_{LOGGED}_steps": losses,
        "dtype": "bfloat16" if _has_bfloat16() else "float32",
        "seconds": round(time.monotonic() - began, 1),
    }
    return Trained(model.to(torch.bfloat16), record)  # type: ignore[arg-type]  # `to` is typed for modules


def _batches(recipe: Recipe, tokenizer: Tokenizer, seed: int) -> Iterator[Batch]:
    row = direct_row if recipe.answers == "direct" else stepwise_row
    problems = chains(f"{recipe.name}/{seed}")
    while True:
        yield batch([row(next(problems), tokenizer) for _ in range(recipe.rows)])


def _loss(model: LlamaForCausalLM, rows: Batch) -> tuple[Tensor, float]:
    """Cross-entropy per token of the answers, to learn from; and in nats per answer, for people."""
    token_ids, learnt = torch.from_numpy(rows.token_ids), torch.from_numpy(rows.learnt)
    hidden = torch.zeros(rows.visible.shape).masked_fill_(~torch.from_numpy(rows.visible), HIDDEN)[:, None]
    with torch.autocast("cpu", torch.bfloat16, enabled=_has_bfloat16()):
        output = model.model(
            input_ids=token_ids,
            attention_mask=hidden,  # (rows, 1, tokens, tokens)
            position_ids=torch.from_numpy(rows.positions),
            use_cache=False,
        )
        logits = model.lm_head(output.last_hidden_state[:, :-1][learnt[:, 1:]])  # (answer tokens, vocabulary)
    losses = torch.nn.functional.cross_entropy(logits.float(), token_ids[:, 1:][learnt[:, 1:]], reduction="none")
    answers = int((token_ids[:, 1:][learnt[:, 1:]] == tokens.END).sum())
    return losses.mean(), float(losses.detach().sum()) / answers


def _has_bfloat16() -> bool:
    """Whether the processor multiplies it itself; where it does not, float32 is faster."""
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


@torch.inference_mode()
def accuracy(model: LlamaForCausalLM, tokenizer: Tokenizer, problems: list[tuple[str, str]], seed: int) -> float:
    """Share of problems (text, answer) that one answer, sampled at temperature 0.7, solves."""
    torch.manual_seed(seed)
    prompts = [tokenizer.encode(HEAD + text + TAIL).ids for text, _ in problems]
    longest = max(map(len, prompts))
    padded = torch.tensor([[tokens.PAD] * (longest - len(ids)) + ids for ids in prompts])
    answers = model.generate(  # type: ignore[misc]  # its mixin's type is not settled
        padded,
        attention_mask=(padded != tokens.PAD).long(),
        do_sample=True,
        temperature=0.7,
        top_k=0,
        max_new_tokens=64,
    )
    texts = [tokenizer.decode(ids.tolist()) for ids in answers[:, longest:]]
    verifier = Boxed()
    right = [
        verifier.is_correct(verifier.extract(text), truth) for text, (_, truth) in zip(texts, problems, strict=True)
    ]
    return sum(right) / len(right)
