"""The first blocks of a probe model, for serving and harvesting alike."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from probes.base import Inputs, ProbeError, Sequences
from probes.card import Pass
from probes.engine.base import BrokenEngineError
from probes.engine.batch import CPU_MICRO_BATCH_TOKENS, MICRO_BATCH_TOKENS, micro_batches
from probes.engine.cores import cores
from probes.engine.forward import Forward
from probes.engine.loading import (
    PACKABLE,
    cut,
    find_device,
    load,
    longest_alike,
    read_config,
    remove_final_norm,
)
from probes.engine.next_token import STATISTICS, next_token_statistics
from probes.engine.packing import Ids, Prefix, Span
from probes.engine.pooling import Pooling
from probes.engine.prefixes import Prefixes
from probes.engine.reading import Hidden, Reading, gather

SMALL_PARAMETERS = 20_000_000
"""Up to here one thread serves best: a product takes less time than waking a second thread, or waiting for one."""


class Allocate(Protocol):
    """Where what is read is put; `np.empty`, or something that makes memory maps."""

    def __call__(self, shape: tuple[int, ...], dtype: type[np.float32] | type[np.float64]) -> NDArray[Any]: ...


class ProbeModel:
    """A pass's probe model, cut after the deepest layer that is read.

    Surplus blocks are neither built nor read from disk; the LM head is there only where next-token statistics are read.

    Args:
        device: cpu, cuda:N, or auto: the first GPU where there is one.
        reuse_prefixes: what prompts begin with alike is computed once, also between calls. Activations then depend in
            their last bits on the prompts before, by what rounding does; harvests, which must not, do without.

    Raises:
        ProbeError: the model cannot be loaded, or has no such layer; or there is no such device.
    """

    def __init__(self, pass_: Pass, reading: Reading, device: str = "auto", *, reuse_prefixes: bool = False) -> None:
        self.device = find_device(device)
        self.reading = reading
        config = read_config(pass_)
        full_depth = int(config.num_hidden_layers)
        layers = reading.layers
        if layers and (layers[0] < 0 or layers[-1] > full_depth):
            raise ProbeError(f"{pass_.probe_model} has layers 0 to {full_depth}; asked for {list(layers)}")
        # A model without any block is one that few architectures can build.
        self.depth = full_depth if reading.next_token else max(1, *layers)
        cut(config, self.depth)
        self.d_model = int(config.hidden_size)
        self._name, self._vocabulary = pass_.probe_model, int(config.vocab_size)
        model = load(pass_, config, with_head=reading.next_token)
        nn.Module.to(model, self.device)
        self._model = model if reading.next_token else cast(PreTrainedModel, model.base_model)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        self._max_threads = 1 if parameters <= SMALL_PARAMETERS else cores()
        if self.depth < full_depth:
            # Hugging Face's last hidden state stands after the final norm, all others before it.
            remove_final_norm(self._model)
        on_cpu = self.device.type == "cpu"
        self._batch_tokens = CPU_MICRO_BATCH_TOKENS if on_cpu else MICRO_BATCH_TOKENS
        self._forward_pass = Forward(self._model, reading, self.depth, self.device)
        if not self._forward_pass.packs and self._forward_pass.sees_ahead():
            raise ProbeError(
                f"probe model {pass_.probe_model} is of type {config.model_type}, whose tokens see those after them: "
                "use a causal language model"
            )
        self._attends_together = not (on_cpu and self._forward_pass.packs)
        """Whether prompts of a micro-batch may be padded to its longest on the way."""
        self._pooling = Pooling(reading.pooled, self.device) if reading.pooled else None
        self.longest_alike = longest_alike(config)
        """Tokens up to which prompts may be read together; None: all may."""
        self.padding_tokens = 0
        """Computed for nothing so far; none where prompts are packed."""
        self.reused_tokens = 0
        """Of all prompts so far, those that were not computed because earlier prompts begin with them."""
        self._prefixes: Prefixes | None = None
        if reuse_prefixes and config.model_type in PACKABLE and not reading.whole_layers:
            self._prefixes = Prefixes(self._make_prefix, reading.tail)

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

        Raises:
            ProbeError: a prompt is empty, or has tokens that are not in the vocabulary; or the device's memory is too
                small for one prompt.
            BrokenEngineError: the GPU fails.
        """
        token_ids = [self._checked(prompt) for prompt in prompts]
        lengths = np.array([len(ids) for ids in token_ids], dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        at_sites = allocate((len(prompts), len(self.reading.sites), self.d_model), np.float32)
        all_tokens = {
            layer: allocate((int(lengths.sum()), self.d_model), np.float32) for layer in self.reading.sequence_layers
        }
        next_token = None
        if self.reading.next_token:
            next_token = allocate((len(prompts), STATISTICS), np.float64)
        pooled = np.empty((len(prompts), len(self.reading.pooled)))
        with _threads(self._max_threads), torch.inference_mode(), _ends_where_broken():
            counts = None if self._attends_together else [self._counted(ids) for ids in token_ids]
            batches = micro_batches(lengths.tolist(), self._batch_tokens, self.longest_alike, counts)
            for i, batch in enumerate(batches):
                if i < skip:
                    on_batch(len(batch))
                    continue
                for rows, hidden in self._halving([token_ids[row] for row in batch], batch):
                    if self.reading.sites:
                        at_sites[rows] = gather(hidden, self.reading.sites).float().cpu().numpy()
                    if self._pooling is not None:
                        pooled[rows] = self._pooling(hidden).cpu().numpy()
                    for layer, values in all_tokens.items():
                        found = hidden.layers[layer]
                        tokens = found.values.float().cpu().numpy()
                        for row, begin in zip(rows, found.starts.tolist(), strict=True):
                            values[starts[row] : starts[row] + lengths[row]] = tokens[begin : begin + lengths[row]]
                    if next_token is not None and hidden.logits is not None:
                        next_token[rows] = next_token_statistics(hidden.logits).cpu().numpy()
                on_batch(len(batch))
        return Inputs(
            prompt_tokens=lengths,
            activations={site: at_sites[:, i] for i, site in enumerate(self.reading.sites)},
            next_token=next_token,
            sequences={layer: Sequences(values, starts, lengths) for layer, values in all_tokens.items()},
            pooled={probe: pooled[:, i] for i, probe in enumerate(self.reading.pooled)},
        )

    def _checked(self, prompt: Sequence[int]) -> Ids:
        if not len(prompt):
            raise ProbeError("a prompt has no tokens: the engine reads rendered prompts, which have some")
        try:
            token_ids = np.array(prompt, dtype=np.int64)
        except OverflowError:
            token_ids = np.array([min(prompt), max(prompt)], dtype=object)
        least, most = token_ids.min(), token_ids.max()
        if least < 0 or most >= self._vocabulary:
            raise ProbeError(
                f"a prompt has token ids from {least} to {most}; the vocabulary of {self._name} has "
                f"{self._vocabulary}: render prompts with the probe model's own tokenizer"
            )
        return token_ids

    def _halving(self, prompts: Sequence[Ids], rows: Sequence[int]) -> Iterator[tuple[Sequence[int], Hidden]]:
        """The micro-batch, by halves where the device has no memory for all of it."""
        try:
            hidden = self._forward(prompts)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            if len(prompts) == 1:
                raise ProbeError(
                    f"{self.device} has no memory left for a prompt of {len(prompts[0])} tokens: "
                    "leave the engine more of it, or let the recipe cut prompts shorter"
                ) from error
            hidden = None
        if hidden is not None:
            yield rows, hidden
            return
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(prompts) // 2
        yield from self._halving(prompts[:middle], rows[:middle])
        yield from self._halving(prompts[middle:], rows[middle:])

    def _forward(self, prompts: Sequence[Ids]) -> Hidden:
        if not self._forward_pass.packs:
            lengths = [len(prompt) for prompt in prompts]
            self.padding_tokens += max(lengths) * len(lengths) - sum(lengths)
        spans = [self._span(prompt) for prompt in prompts]
        hidden = self._forward_pass(spans)
        self.reused_tokens += sum(span.reused for span in spans)
        return hidden

    def _counted(self, prompt: Ids) -> int:
        """Tokens that it counts in a micro-batch: those that are computed; but all are attended to, which takes memory:
        no more than `MICRO_BATCH_TOKENS` together."""
        kept = 0 if self._prefixes is None else self._prefixes.kept(prompt)
        return max(len(prompt) - kept, len(prompt) * CPU_MICRO_BATCH_TOKENS // MICRO_BATCH_TOKENS)

    def _span(self, prompt: Ids) -> Span:
        alone = self.longest_alike is not None and len(prompt) > self.longest_alike
        return Span(prompt) if alone or self._prefixes is None else self._prefixes.span(prompt)

    def _make_prefix(self, token_ids: Ids) -> Prefix:
        prefix = Prefix()
        self._forward_pass([Span(token_ids)], keep=prefix)
        self.reused_tokens -= len(token_ids)  # the prompt that it is made for begins with it, and saves nothing yet
        return prefix


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Of a GPU, or of the machine, for which torch has no class."""
    said = ("CUDA error: out of memory", "DefaultCPUAllocator: can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(one in str(error) for one in said)


@contextmanager
def _ends_where_broken() -> Iterator[None]:
    """
    Raises:
        BrokenEngineError: a GPU failed. It may do so in whatever this process asks of it from now on.
    """
    try:
        yield
    except torch.AcceleratorError as error:
        raise BrokenEngineError(str(error)) from error


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """With at most n threads, and no more than torch has been given."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, n))
    try:
        yield
    finally:
        torch.set_num_threads(before)
