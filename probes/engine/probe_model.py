"""The first blocks of a probe model, for serving and harvesting alike."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from probes.base import Inputs, ProbeError, Sequences
from probes.card import Pass, Site
from probes.engine.batch import micro_batches
from probes.engine.next_token import STATISTICS, next_token_statistics

FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")
"""What architectures call the norm after the last block."""

SMALL_PARAMETERS = 20_000_000
"""Up to here one thread serves best: a product takes less time than waking a second thread, or waiting for one."""


@dataclass(frozen=True)
class Reading:
    """What is to be read of every prompt."""

    sites: tuple[Site, ...] = ()
    """Each with a position."""
    sequence_layers: tuple[int, ...] = ()
    """Layers of which all prompt tokens are read."""
    next_token: bool = False
    """Next-token statistics, which need the full depth and the LM head."""

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted({*(site.layer for site in self.sites), *self.sequence_layers}))


class Allocate(Protocol):
    """Where what is read is put; `np.empty`, or something that makes memory maps."""

    def __call__(self, shape: tuple[int, ...], dtype: type[np.float32] | type[np.float64]) -> NDArray[Any]: ...


class ProbeModel:
    """A pass's probe model, cut after the deepest layer that is read.

    Surplus blocks are neither built nor read from disk; the LM head is there only where next-token statistics are read.

    Args:
        device: cpu, cuda:N, or auto: the first GPU where there is one.

    Raises:
        ProbeError: the model cannot be loaded, or has no such layer; or there is no such device.
    """

    def __init__(self, pass_: Pass, reading: Reading, device: str = "auto") -> None:
        self.device = _device(device)
        self.reading = reading
        config = _config(pass_)
        full_depth = int(config.num_hidden_layers)
        layers = reading.layers
        if layers and (layers[0] < 0 or layers[-1] > full_depth):
            raise ProbeError(f"{pass_.probe_model} has layers 0 to {full_depth}; asked for {list(layers)}")
        # A model without any block is one that few architectures can build.
        self.depth = full_depth if reading.next_token else max(1, *layers)
        _cut(config, self.depth)
        self.d_model = int(config.hidden_size)
        model = _load(pass_, config, with_head=reading.next_token)
        nn.Module.to(model, self.device)
        self._model = model if reading.next_token else model.base_model
        parameters = sum(parameter.numel() for parameter in model.parameters())
        self._max_threads = 1 if parameters <= SMALL_PARAMETERS else None
        if self.depth < full_depth:
            # Hugging Face's last hidden state stands after the final norm, all others before it.
            _remove_final_norm(self._model)

    def read(
        self,
        prompts: Sequence[Sequence[int]],
        on_batch: Callable[[int], None] = lambda n: None,
        allocate: Allocate = np.empty,
        skip: int = 0,
    ) -> Inputs:
        """Everything that `reading` asks for, of n prompts (token ids), activations in single precision.

        Args:
            on_batch: called after each micro-batch with its number of prompts, for progress bars.
            allocate: makes the arrays, one for all sites, one per layer of which all tokens are read, and one of
                next-token statistics, as far as they are read.
            skip: how many micro-batches the arrays hold already.
        """
        lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        at_sites = allocate((len(prompts), len(self.reading.sites), self.d_model), np.float32)
        all_tokens = {
            layer: allocate((int(lengths.sum()), self.d_model), np.float32) for layer in self.reading.sequence_layers
        }
        next_token = None
        if self.reading.next_token:
            next_token = allocate((len(prompts), STATISTICS), np.float64)
        with _threads(self._max_threads), torch.inference_mode():
            for i, rows in enumerate(micro_batches(lengths.tolist())):
                if i < skip:
                    on_batch(len(rows))
                    continue
                hidden, logits = self._forward([prompts[row] for row in rows])
                at_sites[rows] = self._gather(hidden, lengths[rows]).float().cpu().numpy()
                for layer, values in all_tokens.items():
                    for row, prompt in zip(rows, hidden[layer].float().cpu().numpy(), strict=True):
                        values[starts[row] : starts[row] + lengths[row]] = prompt[: lengths[row]]
                if next_token is not None and logits is not None:
                    next_token[rows] = next_token_statistics(logits).cpu().numpy()
                on_batch(len(rows))
        return Inputs(
            prompt_tokens=lengths,
            activations={site: at_sites[:, i] for i, site in enumerate(self.reading.sites)},
            next_token=next_token,
            sequences={layer: Sequences(values, starts, lengths) for layer, values in all_tokens.items()},
        )

    def _forward(self, prompts: Sequence[Sequence[int]]) -> tuple[Mapping[int, Tensor], Tensor | None]:
        """By layer, (batch, T, d_model); and the last tokens' logits, (batch, vocabulary), where they are read."""
        # Padded on the right, a causal model needs no mask: no prompt token sees what follows it.
        token_ids = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.long)  # (batch, T)
        for row, prompt in enumerate(prompts):
            token_ids[row, : len(prompt)] = torch.tensor(prompt)
        token_ids = token_ids.to(self.device)
        if self.reading.next_token:
            with _last_tokens(self._model, torch.tensor([len(prompt) - 1 for prompt in prompts], device=self.device)):
                output = self._model(input_ids=token_ids, use_cache=False, output_hidden_states=True)
            return dict(enumerate(output.hidden_states)), output.logits.squeeze(1)
        last_only = set(self.reading.layers) <= {self.depth}
        output = self._model(input_ids=token_ids, use_cache=False, output_hidden_states=not last_only)
        if last_only:
            return {self.depth: output.last_hidden_state}, None
        return dict(enumerate(output.hidden_states)), None

    def _gather(self, hidden: Mapping[int, Tensor], lengths: NDArray[np.int64]) -> Tensor:
        """(batch, sites, d_model)"""
        rows = torch.arange(len(lengths), device=self.device)
        found = [hidden[site.layer][rows, _at(lengths, site, self.device)] for site in self.reading.sites]
        return torch.stack(found, dim=1) if found else torch.empty(len(lengths), 0, self.d_model)


@contextmanager
def _last_tokens(model: nn.Module, last: Tensor) -> Iterator[None]:
    """Inside, the LM head is given one token of each prompt, by index, (batch,): not (batch, T, vocabulary) logits.

    What comes before and after it stays the architecture's own: Granite and Cohere scale logits, Gemma caps them.
    """

    def keep_last(head: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        return (arguments[0][torch.arange(len(last), device=last.device), last][:, None],)  # (batch, 1, d_model)

    hook = model.get_output_embeddings().register_forward_pre_hook(keep_last)  # type: ignore[operator]
    try:
        yield
    finally:
        hook.remove()


def _at(lengths: NDArray[np.int64], site: Site, device: torch.device) -> Tensor:
    """Index of a site's token in each prompt, (batch,); the first one where the prompt is too short."""
    assert site.position is not None
    return torch.tensor(np.maximum(0, lengths + site.position), device=device)


def n_layers(pass_: Pass) -> int:
    """The depth of the whole probe model, which is its deepest layer's index.

    Raises:
        ProbeError: its configuration cannot be read.
    """
    return int(_config(pass_).num_hidden_layers)


def _device(name: str) -> torch.device:
    """
    Raises:
        ProbeError: there is no such device.
    """
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if name == "auto":
        name = gpus[0] if gpus else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts that it has it
        raise ProbeError(f"device {name!r} is not here: choose auto, {', '.join(['cpu', *gpus])}") from error
    return device


def _config(pass_: Pass) -> Any:
    try:
        config = AutoConfig.from_pretrained(pass_.probe_model, revision=pass_.revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise ProbeError(
                f"probe model {pass_.probe_model} wants its own code run, which is never done: "
                "use one of an architecture that Transformers has"
            ) from error
        raise ProbeError(f"cannot read the configuration of probe model {pass_.probe_model}: {error}") from error
    return config.get_text_config()


def _cut(config: Any, depth: int) -> None:
    """
    Raises:
        ProbeError: the architecture's blocks cannot be left out.
    """
    try:
        config.num_hidden_layers = depth
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:depth]
    except AttributeError as error:  # Mamba's layer types are no list of the configuration's
        raise ProbeError(
            f"a probe model of type {config.model_type} cannot be cut after a layer: use a causal transformer"
        ) from error


def _load(pass_: Pass, config: Any, with_head: bool) -> PreTrainedModel:
    loader = AutoModelForCausalLM if with_head else AutoModel
    try:
        with _quiet():
            # safetensors alone: other weights are pickles.
            model: PreTrainedModel = loader.from_pretrained(
                pass_.probe_model,
                revision=pass_.revision,
                config=config,
                dtype=getattr(torch, pass_.dtype),
                use_safetensors=True,
                trust_remote_code=False,
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


def _remove_final_norm(model: nn.Module) -> None:
    for name in FINAL_NORMS:
        if isinstance(getattr(model, name, None), nn.Module):
            setattr(model, name, nn.Identity())
            return
    raise ProbeError(f"{type(model).__name__} has no final norm that we know ({', '.join(FINAL_NORMS)}): cannot cut it")
