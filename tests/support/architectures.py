"""A tiny model with random weights of every architecture family that is packed, and of two that are padded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY, WINDOW, LONGEST = 640, 16, 80
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "max_position_embeddings": 256,
}  # fmt: skip
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]

ARCHITECTURES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama-3": lambda: LlamaConfig(
        **SIZES,
        head_dim=16,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "llama-dynamic": lambda: LlamaConfig(
        **SIZES | {"max_position_embeddings": 40},
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    ),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=WINDOW),
    "qwen2": lambda: Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen2.5": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(
        **SIZES, head_dim=16, layer_types=SLIDING, use_sliding_window=True, sliding_window=WINDOW,
    ),
    "gemma2": lambda: Gemma2Config(
        **SIZES, head_dim=16, layer_types=SLIDING, sliding_window=WINDOW, attn_logit_softcapping=1.0,
        query_pre_attn_scalar=24,
    ),
    "gemma3": lambda: Gemma3TextConfig(**SIZES, head_dim=16, layer_types=SLIDING, sliding_window=WINDOW),
    # As from 4B on: the language model is part of one that reads images too.
    "gemma3-multimodal": lambda: Gemma3Config(
        text_config={**SIZES, "head_dim": 16, "layer_types": SLIDING, "sliding_window": WINDOW},
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        },
        mm_tokens_per_image=4, image_token_index=0,
    ),
    "phi3": lambda: Phi3Config(**SIZES, sliding_window=WINDOW),
    "phi3-longrope": lambda: Phi3Config(
        **SIZES,
        original_max_position_embeddings=40,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 40,
        },
    ),
    "phi4": lambda: Phi3Config(**SIZES, partial_rotary_factor=0.5),
    "gpt_oss": lambda: GptOssConfig(
        **SIZES, head_dim=16, layer_types=SLIDING, sliding_window=WINDOW, num_local_experts=4, num_experts_per_tok=2,
    ),
    "olmo2": lambda: Olmo2Config(**SIZES),
    "granite": lambda: GraniteConfig(**SIZES, residual_multiplier=0.5, attention_multiplier=0.3),
    "cohere2": lambda: Cohere2Config(**SIZES, layer_types=SLIDING, sliding_window=WINDOW),
}  # fmt: skip


def save(name: str, folder: Path) -> Path:
    """A checkpoint whose weights are large enough that a wrong mask shows."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[name](), dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.5)
        else:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    return folder
