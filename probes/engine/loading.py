"""Loads a probe model's first blocks: surplus blocks are neither built nor read from disk."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.quantization_config import Mxfp4Config

from probes.base import ProbeError
from probes.card import Pass
from probes.engine.attention import PACKED

logger = logging.getLogger(__name__)

FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")
"""What architectures call the norm after the last block."""

PACKABLE = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt_oss", "olmo2")
"""Model types whose packed activations are tested to equal Transformers' own; others are padded."""

WITHIN = {
    r"^(?:language_model\.model|model\.language_model)\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
"""What multimodal checkpoints (Gemma 3 from 4B on) call the language model's tensors, and what it calls them itself."""


def n_layers(pass_: Pass) -> int:
    """The depth of the whole probe model, which is its deepest layer's index.

    Raises:
        ProbeError: its configuration cannot be read.
    """
    return int(read_config(pass_).num_hidden_layers)


def find_device(name: str) -> torch.device:
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


def read_config(pass_: Pass, name: str | None = None) -> Any:
    """Of the language model, where the pass's model is more than that.

    Args:
        name: what errors call it; None: probe model NAME.

    Raises:
        ProbeError: it cannot be read, names code of its own, or weights that are quantised in a way that is not read.
    """
    name = name or f"probe model {pass_.probe_model}"
    try:
        config = AutoConfig.from_pretrained(pass_.probe_model, revision=pass_.revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise ProbeError(
                f"{name} wants its own code run, which is never done: use one of an architecture that Transformers has"
            ) from error
        raise ProbeError(f"cannot read the configuration of {name}: {error}") from error
    language: Any = config.get_text_config()
    method = _quantised(config) or _quantised(language)
    if method is not None and (method != "mxfp4" or language is not config):
        raise ProbeError(
            f"the weights of {name} are quantised ({method}); only mxfp4 is read, as gpt-oss comes in it: use the same "
            "model without quantisation"
        )
    return language


def _quantised(config: Any) -> str | None:
    """By which method; None: not at all."""
    quantisation = getattr(config, "quantization_config", None)
    return str(quantisation.get("quant_method", "no method named")) if quantisation else None


def cut(config: Any, depth: int) -> None:
    """Leave out the blocks after the first `depth`.

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


def load(pass_: Pass, config: Any, with_head: bool) -> PreTrainedModel:
    """The model that the configuration describes, with our own attention where it can be packed.

    Raises:
        ProbeError: it cannot be loaded, or a tensor of it is missing.
    """
    loader = AutoModelForCausalLM if with_head else AutoModel
    packed = {"attn_implementation": PACKED} if config.model_type in PACKABLE else {}
    if not packed:
        logger.warning(
            "probe model %s is of type %s, whose packing is not tested: its prompts are padded, which is slower",
            pass_.probe_model,
            config.model_type,
        )
    model = from_safetensors(loader, pass_, f"probe model {pass_.probe_model}", config, **packed)
    for module in model.modules():
        if hasattr(module, "original_max_seq_len"):
            module.register_forward_pre_hook(_forget_lengths)
    return model


def from_safetensors(loader: Any, pass_: Pass, name: str, config: Any, **options: Any) -> PreTrainedModel:
    """A pass's model, whole or as the configuration has it, in the pass's dtype.

    Args:
        loader: Transformers' class that loads it.
        name: what errors call it.
        options: to the loader.

    Raises:
        ProbeError: it is not causal, cannot be loaded, or a tensor of it is missing.
    """
    _check_causal(config, name)
    dtype = getattr(torch, pass_.dtype)
    quantised = _quantised(config) is not None
    if quantised:
        # Left to itself, Transformers wants accelerate, or downloads kernels and runs them.
        options["quantization_config"] = Mxfp4Config(dequantize=True)
    try:
        with quiet():
            # safetensors alone: other weights are pickles.
            model, found = loader.from_pretrained(
                pass_.probe_model,
                revision=pass_.revision,
                config=config,
                dtype=dtype,
                key_mapping=WITHIN,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except ImportError as error:
        raise ProbeError(f"cannot load {name}: {error}; install what it lacks, or choose another model") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ProbeError(f"cannot load {name}: {error}; it must be a causal language model in safetensors") from error
    if found["missing_keys"]:
        # Transformers would go on with random numbers in their place.
        missing = ", ".join(sorted(found["missing_keys"])[:5])
        raise ProbeError(f"{name} lacks tensors, {missing} among them: get its files again")
    loaded: PreTrainedModel = model
    if quantised:
        # Transformers leaves these as they come: MXFP4 as bfloat16, which holds it exactly, others as they are stored.
        for parameter in loaded.parameters():
            parameter.data = parameter.data.to(dtype)
    return loaded


def _check_causal(config: Any, name: str) -> None:
    """What padded and packed prompts find is right only where no token sees those after it.

    Raises:
        ProbeError: they do.
    """
    kind = type(config)
    bert_like = kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    why = None
    # "vision", in Gemma 4, leaves text causal.
    if getattr(config, "use_bidirectional_attention", False) in (True, "all") or not getattr(config, "is_causal", True):
        why = "with attention in both directions"
    elif config.is_encoder_decoder or bert_like:
        why = "which is no decoder"
    elif kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        why = "of which Transformers has no causal language model"
    if why is not None:
        raise ProbeError(
            f"{name} is of type {config.model_type}, {why}: use a causal language model, such as Llama, Qwen or gpt-oss"
        )


def remove_final_norm(model: nn.Module) -> None:
    """Have the last hidden state stand before the final norm, as all but the last layer do in a whole model."""
    for name in FINAL_NORMS:
        if isinstance(getattr(model, name, None), nn.Module):
            setattr(model, name, nn.Identity())
            return
    raise ProbeError(f"{type(model).__name__} has no final norm that we know ({', '.join(FINAL_NORMS)}): cannot cut it")


def longest_alike(config: Any) -> int | None:
    """Tokens up to which a prompt's rotation tables do not depend on the length of what is read with it; None: any.

    Longer ones must be read alone: `longrope` (Phi-3) and `dynamic` choose one table by the longest prompt of a pass.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = list(parameters.values()) if all(isinstance(one, Mapping) for one in parameters.values()) else [parameters]
    bounds = [
        int(kind.get("original_max_position_embeddings") or config.max_position_embeddings)
        for kind in kinds
        if kind.get("rope_type") in ("longrope", "dynamic")
    ]
    return min(bounds, default=None)


def _forget_lengths(rotary: Any, _: Any) -> None:
    """Before rotations are computed. With `dynamic` ones, Transformers keeps the table of the longest prompt so far and
    would read shorter ones by it: what a probe says must not depend on who asked before."""
    by_layer = isinstance(rotary.rope_type, Mapping)
    for layer_type, kind in rotary.rope_type.items() if by_layer else [("", rotary.rope_type)]:
        prefix = f"{layer_type}_" if by_layer else ""
        if kind == "dynamic":
            setattr(rotary, f"{prefix}max_seq_len_cached", rotary.original_max_seq_len)
            setattr(rotary, f"{prefix}inv_freq", getattr(rotary, f"{prefix}original_inv_freq"))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bar, and the report that the blocks we left out were left out."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
