"""vLLM's own architectures, cut after the deepest layer that probes read, with the probes' heads as their pooler.

What they need to know stands in the model's configuration, where `probes.engine.vllm_serving.overrides` puts it.
"""

import re
from collections.abc import Callable, Iterable, Sequence, Set
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.pooler import Pooler
from vllm.tasks import PoolingTask
from vllm.v1.outputs import PoolerOutput
from vllm.v1.pool.metadata import PoolingMetadata

from probes.artifact import Artifact
from probes.base import Inputs
from probes.card import Site
from probes.engine import heads
from probes.engine.next_token import next_token_statistics
from probes.engine.vllm_plugin import STOCK
from probes.reference import load_probe

BLOCK = re.compile(r"(?:^|\.)layers\.(\d+)\.")


class ProbeModel(nn.Module):
    """What a stock architecture becomes one of `Probe<Arch>` by. Its output is what the probes read, (tokens, d).

    The layers stand side by side, in ascending order. They are taken where vLLM takes auxiliary ones for speculative
    decoding: sums of residuals, counted as Hugging Face counts; but the whole model's last one is after the final norm.

    Raises:
        ValueError: vLLM is to spread the model in a way in which it cannot be read.
    """

    is_pooling_model: ClassVar = True
    # Of the stock architecture:
    compute_logits: Callable[[Tensor], Tensor]
    set_aux_hidden_state_layers: Callable[[tuple[int, ...]], None]

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config, parallel = vllm_config.model_config.hf_config, vllm_config.parallel_config
        artifacts = [load_probe(folder, verify=False) for folder in config.pika_probes]
        self._depth = int(config.num_hidden_layers)
        self._next_token = any(artifact.probe.next_token for artifact in artifacts)
        if parallel.pipeline_parallel_size > 1:
            raise ValueError("a probe model is not spread over pipeline stages: use --tensor-parallel-size")
        if self._next_token and parallel.tensor_parallel_size > 1:
            raise ValueError("next-token statistics are read on one GPU alone: leave --tensor-parallel-size out")
        layers = tuple(config.pika_layers)
        self._reads_final = bool(config.pika_reads_final)
        self.set_aux_hidden_state_layers(layers[:-1] if self._reads_final else layers)
        if not self._next_token:
            self.lm_head = nn.Identity()
        self.pooler = ProbePooler(artifacts, layers, self if self._next_token else None)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output = super().forward(*args, **kwargs)
        final, read = output if isinstance(output, tuple) else (output, [])
        if self._reads_final:
            read = [*read, final]
        return read[0] if len(read) == 1 else torch.cat(read, dim=-1)  # (tokens, layers * d_model)

    def is_unused_checkpoint_weight(self, name: str) -> bool:
        """Whether a tensor of the checkpoint is of no use; vLLM opens no file that holds such tensors alone."""
        block = BLOCK.search(name)
        surplus = block is not None and int(block[1]) >= self._depth
        return surplus or (name.startswith("lm_head.") and not self._next_token)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        # Tensors are memory maps: of those that are passed over nothing is read.
        used = ((name, weight) for name, weight in weights if not self.is_unused_checkpoint_weight(name))
        loaded: set[str] = super().load_weights(used)  # type: ignore[misc]  # the stock architecture's
        return loaded


class ProbePooler(Pooler):
    """Scores of each prompt: success probability of all probes, then output tokens of all, then activation percentiles
    of all; NaN where there is no such head, and where an activation is not known.

    That is so where vLLM took the token at a probe's position from its prefix cache, which holds no hidden states; it
    never takes the last token from there.

    Args:
        layers: which the hidden states hold, side by side.
        model: computes the logits, where next-token statistics are read.
    """

    def __init__(self, artifacts: Sequence[Artifact], layers: Sequence[int], model: ProbeModel | None) -> None:
        super().__init__()
        self._artifacts = artifacts
        self._layers = tuple(layers)
        self._sites = sorted({(site.layer, site.position or -1) for one in artifacts for site in heads.sites(one)})
        self._positions = sorted({position for _, position in self._sites})
        # Not a submodule: it is the parent.
        self._compute_logits = None if model is None else model.compute_logits

    def get_supported_tasks(self) -> Set[PoolingTask]:
        return {"classify"}

    def forward(self, hidden_states: Tensor, pooling_metadata: PoolingMetadata) -> PoolerOutput:
        """(tokens, layers * d_model) -> (prompts, 3 * probes), float32"""
        rows = self._rows(hidden_states, pooling_metadata)  # (prompts, positions, layers * d_model)
        by_layer = dict(zip(self._layers, np.split(rows.numpy(), len(self._layers), axis=-1), strict=True))
        next_token = None
        if self._compute_logits is not None:
            last = hidden_states[pooling_metadata.get_pooling_cursor().last_token_indices_gpu]
            logits = self._compute_logits(last.chunk(len(self._layers), dim=-1)[-1])
            next_token = next_token_statistics(logits).double().cpu().numpy()
        inputs = Inputs(
            prompt_tokens=pooling_metadata.prompt_lens.numpy(),
            activations={
                Site(layer=layer, position=position): by_layer[layer][:, self._positions.index(position)]
                for layer, position in self._sites
            },
            next_token=next_token,
        )
        scores = heads.scores(self._artifacts, inputs, partial=True)
        columns = [scores.success, scores.output_tokens, scores.activation_percentile]
        return torch.from_numpy(np.concatenate(columns, axis=1).astype(np.float32))

    def _rows(self, hidden_states: Tensor, pooling_metadata: PoolingMetadata) -> Tensor:
        """What is read of each prompt, (prompts, positions, layers * d_model), as far as it has been computed: in this
        step, or in an earlier one where a prompt is prefilled in chunks."""
        cursor = pooling_metadata.get_pooling_cursor()
        lengths, ends, counts = cursor.prompt_lens_cpu, cursor.seq_lens_cpu, cursor.num_scheduled_tokens_cpu
        begins = ends - counts
        # Of a prompt that is too short the first token.
        wanted = (lengths[:, None] + torch.tensor(self._positions)).clamp(min=0)  # (prompts, positions)
        here = (wanted >= begins[:, None]) & (wanted < ends[:, None])
        at = wanted + (counts.cumsum(0) - counts - begins)[:, None]
        rows = torch.full((*wanted.shape, hidden_states.shape[-1]), torch.nan)
        rows[here] = hidden_states[at[here].to(hidden_states.device)].float().cpu()
        for row, own, state, finished in zip(
            rows, here, pooling_metadata.pooling_states, cursor.get_finished_mask(), strict=True
        ):
            if state.hidden_states_cache:
                row[~own] = state.hidden_states_cache.pop()[~own]
            if not finished:
                state.hidden_states_cache.append(row)
        return rows


def __getattr__(name: str) -> type[nn.Module]:
    """`Probe<Arch>`, made when it is asked for: each architecture imports much that the others do not."""
    stock = name.removeprefix("Probe")
    if stock not in STOCK or stock == name:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    base = getattr(import_module(f"vllm.model_executor.models.{STOCK[stock]}"), stock)
    made = type(name, (ProbeModel, base), {"__module__": __name__})
    globals()[name] = made
    return made
