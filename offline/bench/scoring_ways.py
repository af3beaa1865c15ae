"""Other ways to read the same prompts with the same model on the same device, for comparison; each in CPU seconds and
wall time.

Run in a process of their own, with the threads and the waiting policy that the engine's process has.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import AutoModel, AutoModelForCausalLM

from offline.bench.scoring_model import Model
from probes.engine.base import Prompt
from probes.engine.cores import cores
from probes.engine.loading import cut, quiet, read_config
from probes.engine.local import LocalEngine
from probes.engine.probe_model import SMALL_PARAMETERS

Prompts = Sequence[Sequence[int]]
BATCH = 16
POSITIONS = 5
PACK = {"cpu": 1024, "cuda": 8192}
"""Tokens of one product of the packed floor."""


@dataclass(frozen=True)
class Cost:
    cpu_s: float
    wall_s: float
    on_gpu: bool = False

    @property
    def seconds(self) -> float:
        """What ways are compared by: on a GPU, the CPU does little but wait."""
        return self.wall_s if self.on_gpu else self.cpu_s


def reference(model: Model, prompts: Prompts) -> Cost:
    """As the research code does: all layers with the LM head, eager attention, batches of 16 padded on the left, and
    hidden states of the last five positions of all layers copied out."""
    whole = _load(AutoModelForCausalLM, model, attn_implementation="eager")
    _use_threads(whole)

    def run() -> None:
        for begin in range(0, len(prompts), BATCH):
            token_ids, mask = _padded(prompts[begin : begin + BATCH], model.device)
            hidden = whole(token_ids, attention_mask=mask, output_hidden_states=True).hidden_states
            for layer in hidden:
                layer[:, -POSITIONS:].float().cpu().numpy().copy()

    return _measure(model, run)


def plain(model: Model, prompts: Prompts) -> Cost:
    """Transformers alone, cut at the probe's layer, one prompt at a time."""
    first = _cut(model)

    def run() -> None:
        for prompt in prompts:
            token_ids = torch.tensor([prompt], device=model.device)
            first(token_ids, use_cache=False).last_hidden_state[0, -1].float().cpu().numpy().copy()

    return _measure(model, run)


def batched(model: Model, prompts: Prompts) -> Cost:
    """Transformers alone, cut at the probe's layer, in padded batches of 16 prompts of nearly the same length."""
    first = _cut(model)
    by_length = sorted(prompts, key=len)

    def run() -> None:
        for begin in range(0, len(prompts), BATCH):
            token_ids, mask = _padded(by_length[begin : begin + BATCH], model.device)
            hidden = first(token_ids, attention_mask=mask, use_cache=False).last_hidden_state
            hidden[:, -1].float().cpu().numpy().copy()

    return _measure(model, run)


def floor(model: Model, prompts: Prompts) -> Cost:
    """The matrix products of the blocks alone, for the same number of tokens; by prompts or in packs: the quicker."""
    first = _cut(model)
    weights = [weight for block in first.layers for weight in _products(block, first.config)]
    pack = PACK[torch.device(model.device).type]
    longest = max(pack, *map(len, prompts))
    inputs = {
        width: torch.randn(longest, width, dtype=weights[0].dtype, device=model.device)
        for width in {w.shape[1] for w in weights}
    }
    tokens = sum(map(len, prompts))
    packs = [min(pack, tokens - begin) for begin in range(0, tokens, pack)]

    def run(rows: Sequence[int]) -> None:
        for n in rows:
            for weight in weights:
                linear(inputs[weight.shape[1]][:n], weight)

    costs = [_measure(model, lambda rows=rows: run(rows)) for rows in (list(map(len, prompts)), packs)]  # type: ignore[misc]  # a lambda's default has no type
    return min(costs, key=lambda cost: cost.seconds)


def _padded(batch: Prompts, device: str) -> tuple[Tensor, Tensor]:
    """Token ids filled up on the left, and which of them are a prompt's."""
    longest = max(map(len, batch))
    token_ids = [[0] * (longest - len(prompt)) + list(prompt) for prompt in batch]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch]
    return torch.tensor(token_ids, device=device), torch.tensor(mask, device=device)


def _products(block: torch.nn.Module, config: Any) -> Iterator[Tensor]:
    """The weights that a block multiplies one token with; of experts as many as a token goes to."""
    chosen = getattr(config, "num_experts_per_tok", 0)
    for module in block.modules():
        if isinstance(module, torch.nn.Linear):
            yield module.weight
        for weight in module.parameters(recurse=False):
            if weight.dim() == 3:  # (experts, from, to), or (experts, to, from), which costs the same
                yield from weight[:chosen]


def batch_1(model: Model, prompts: Prompts) -> list[float]:
    """Wall seconds of our engine for each prompt alone, in this process."""
    engine = LocalEngine([model.artifact], model.device)
    engine.score([Prompt((tuple(prompts[0]),))])
    seconds = []
    for prompt in prompts:
        started = time.perf_counter()
        engine.score([Prompt((tuple(prompt),))])
        seconds.append(time.perf_counter() - started)
    return seconds


def _measure(model: Model, run: Callable[[], None]) -> Cost:
    on_gpu = model.device != "cpu"
    with torch.inference_mode():
        if on_gpu:
            run()  # the first time kernels are loaded and chosen
            torch.cuda.synchronize()
        cpu, wall = time.process_time(), time.perf_counter()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        return Cost(time.process_time() - cpu, time.perf_counter() - wall, on_gpu)


def _cut(model: Model) -> Any:
    """Transformers' own, up to the probe's layer."""
    assert model.artifact.pass_ is not None
    config = read_config(model.artifact.pass_)
    cut(config, model.layer)
    first = _load(AutoModel, model, config=config)
    _use_threads(first)
    return first


def _load(loader: Any, model: Model, **options: Any) -> Any:
    dtype = getattr(torch, model.dtype)
    with quiet():
        return (
            loader.from_pretrained(model.folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, **options)
            .eval()
            .to(model.device)
        )


def _use_threads(module: Any) -> None:
    """As many as the engine takes for a model of this size."""
    small = sum(parameter.numel() for parameter in module.parameters()) <= SMALL_PARAMETERS
    torch.set_num_threads(1 if small else cores())
