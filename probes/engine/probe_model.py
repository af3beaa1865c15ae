"""The first blocks of a probe model, for serving and harvesting alike."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import logging

from probes.base import Activations, ProbeError
from probes.card import Pass, Site
from probes.engine.batch import micro_batches

FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")
"""What architectures call the norm after the last block."""

SMALL_PARAMETERS = 20_000_000
"""Up to here one thread serves best: a product takes less time than waking a second thread, or waiting for one."""


class ProbeModel:
    """A pass's probe model, cut after the deepest layer asked for; has no LM head.

    Surplus blocks are neither built nor read from disk.

    Args:
        layers: the layers (Hugging Face index) that will be read.
        device: cpu, cuda:N, or auto: the first GPU where there is one.

    Raises:
        ProbeError: the model cannot be loaded, or has no such layer.
    """

    def __init__(self, pass_: Pass, layers: Sequence[int], device: str = "auto") -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        config = _config(pass_)
        full_depth = int(config.num_hidden_layers)
        self.layers = tuple(sorted(set(layers)))
        if not self.layers or self.layers[-1] > full_depth:
            raise ProbeError(f"{pass_.probe_model} has layers 0 to {full_depth}; asked for {list(layers)}")
        # A model without any block is one that few architectures can build.
        self.depth = max(1, self.layers[-1])
        config.num_hidden_layers = self.depth
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: self.depth]
        self.d_model = int(config.hidden_size)
        self._model = _load(pass_, config)
        nn.Module.to(self._model, self.device)
        parameters = sum(parameter.numel() for parameter in self._model.parameters())
        self._max_threads = 1 if parameters <= SMALL_PARAMETERS else None
        if self.depth < full_depth:
            # Hugging Face's last hidden state stands after the final norm, all others before it.
            _remove_final_norm(self._model)

    def activations(
        self, prompts: Sequence[Sequence[int]], sites: Sequence[Site], on_batch: Callable[[int], None] = lambda n: None
    ) -> Activations:
        """Hidden states of n prompts (token ids): (n, sites, d_model) in single precision.

        Args:
            on_batch: called after each micro-batch with its number of prompts, for progress bars.
        """
        found = np.empty((len(prompts), len(sites), self.d_model), dtype=np.float32)
        with _threads(self._max_threads):
            for rows in micro_batches([len(prompt) for prompt in prompts]):
                found[rows] = self._forward([prompts[row] for row in rows], sites).float().cpu().numpy()
                on_batch(len(rows))
        return found

    @torch.inference_mode()
    def _forward(self, prompts: Sequence[Sequence[int]], sites: Sequence[Site]) -> Tensor:
        """(batch, sites, d_model)"""
        lengths = [len(prompt) for prompt in prompts]
        # Padded on the right, a causal model needs no mask: no prompt token sees what follows it.
        token_ids = torch.zeros(len(prompts), max(lengths), dtype=torch.long)  # (batch, T)
        for row, prompt in enumerate(prompts):
            token_ids[row, : len(prompt)] = torch.tensor(prompt)
        last_only = self.layers == (self.depth,)
        output = self._model(input_ids=token_ids.to(self.device), use_cache=False, output_hidden_states=not last_only)
        hidden = {self.depth: output.last_hidden_state} if last_only else output.hidden_states  # (batch, T, d_model)
        rows = torch.arange(len(prompts), device=self.device)
        at = [torch.tensor([max(0, n + site.position) for n in lengths], device=self.device) for site in sites]
        return torch.stack([hidden[site.layer][rows, t] for site, t in zip(sites, at, strict=True)], dim=1)


def n_layers(pass_: Pass) -> int:
    """The depth of the whole probe model, which is its deepest layer's index.

    Raises:
        ProbeError: its configuration cannot be read.
    """
    return int(_config(pass_).num_hidden_layers)


def _config(pass_: Pass) -> Any:
    try:
        config = AutoConfig.from_pretrained(pass_.probe_model, revision=pass_.revision)
    except (OSError, ValueError, KeyError) as error:
        raise ProbeError(f"cannot read the configuration of probe model {pass_.probe_model}: {error}") from error
    return config.get_text_config()


def _load(pass_: Pass, config: Any) -> PreTrainedModel:
    try:
        with _quiet():
            # safetensors alone: other weights are pickles.
            model: PreTrainedModel = AutoModel.from_pretrained(
                pass_.probe_model,
                revision=pass_.revision,
                config=config,
                dtype=getattr(torch, pass_.dtype),
                use_safetensors=True,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ProbeError(
            f"cannot load probe model {pass_.probe_model}: {error}; it must be a causal language model in safetensors"
        ) from error
    return model


@contextmanager
def _threads(n: int | None) -> Iterator[None]:
    """With at most n threads; None: as many as torch has been given."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, n or before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bar, and the report that the blocks we left out were left out."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _remove_final_norm(model: PreTrainedModel) -> None:
    for name in FINAL_NORMS:
        if isinstance(getattr(model, name, None), nn.Module):
            setattr(model, name, nn.Identity())
            return
    raise ProbeError(f"{type(model).__name__} has no final norm that we know ({', '.join(FINAL_NORMS)}): cannot cut it")
