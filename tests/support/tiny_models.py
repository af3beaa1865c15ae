"""Tiny random checkpoints of the architectures that the plug-in for vLLM knows, and probes on them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GptOssConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from probes.artifact import Artifact, load_artifact, save_artifact
from probes.base import Probe
from probes.card import OutputTokens, Pass, Recipe, Site, Statistics
from probes.linear_eoi import LinearEoi
from probes.mlp import NEXT_TOKEN, Mlp
from tests.support.probes import card

D_MODEL, DEPTH, VOCABULARY = 128, 4, 640
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": D_MODEL, "intermediate_size": 192, "num_hidden_layers": DEPTH,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "Llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "Qwen2": Qwen2Config(
        **{name: size for name, size in SIZES.items() if name != "head_dim"}, tie_word_embeddings=False
    ),
    "Qwen3": Qwen3Config(**SIZES, tie_word_embeddings=False),
    "Mistral": MistralConfig(**SIZES, sliding_window=24, tie_word_embeddings=False),
    "GptOss": GptOssConfig(
        **{**SIZES, "max_position_embeddings": 131_072},
        sliding_window=24,
        num_local_experts=4,
        num_experts_per_tok=2,
        tie_word_embeddings=False,
    ),
}


def checkpoint(architecture: str, folder: Path) -> Path:
    """Weights large enough that every block matters, in several files as a large model's are."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[architecture], dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or "sinks" in name or "bias" in name:
                parameter.normal_(std=0.08)
    model.save_pretrained(folder, max_shard_size="400KB")
    return folder


def linear(folder: Path, model: Path, layer: int, position: int = -1, seed: int = 0, heads: bool = False) -> Artifact:
    """A linear probe, with an output-token head and activation statistics at the layer below if `heads`."""
    rng = np.random.default_rng(seed)
    site = Site(layer=layer, position=position)
    changes, beside = _heads(Site(layer=layer - 1, position=-1), rng) if heads else ({}, {})
    weight = rng.normal(size=D_MODEL).astype(np.float32) / 4
    return _saved(folder, model, LinearEoi(weight, site), changes, beside)


def mlp(folder: Path, model: Path, layer: int, position: int = -1, seed: int = 0) -> Artifact:
    """A network that reads two layers and next-token statistics."""
    rng = np.random.default_rng(seed)
    sites = [Site(layer=one, position=position) for one in (layer - 1, layer)]
    d, hidden = 2 * D_MODEL + NEXT_TOKEN, 16
    shapes = {"mean": d, "hidden_weight": (d, hidden), "hidden_bias": hidden, "output_weight": hidden, "output_bias": 1}
    tensors = {name: rng.normal(size=shape).astype(np.float32) / 8 for name, shape in shapes.items()}
    tensors["deviation"] = np.ones(d, dtype=np.float32)
    probe = Mlp(tensors, sites, next_token=True)
    return _saved(folder, model, probe, {"kind": "mlp", "parameters": probe.parameters()}, {})


def _heads(site: Site, rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    output_tokens = OutputTokens(
        site=site, bias=3.0, smearing=1.1, low=1.0, high=500.0, log_rmse=0.5, log_rmse_of_mean=1.0
    )
    statistics = Statistics(site=site, n=500, residual_variance=0.5, quantiles=[(0.0, 0.0), (99.0, 100.0)])
    components = np.linalg.qr(rng.normal(size=(D_MODEL, 4)))[0].T
    beside = {
        "output_tokens.weight": rng.normal(size=D_MODEL) / 20,
        "statistics.mean": rng.normal(size=D_MODEL) / 10,
        "statistics.components": components,
        "statistics.variances": np.array([4.0, 3.0, 2.0, 1.0]),
    }
    tensors = {name: value.astype(np.float32) for name, value in beside.items()}
    return {"output_tokens": output_tokens, "statistics": statistics}, tensors


def _saved(folder: Path, model: Path, probe: Probe, changes: dict[str, Any], beside: dict[str, Any]) -> Artifact:
    pass_ = Pass(probe_model=str(model), recipe=Recipe(chat_template_sha256=""))
    assert probe.site is not None
    made = card(layer=probe.site.layer, position=probe.site.position or -1, **{"d_model": D_MODEL, **changes})
    made = made.model_copy(update={"pass_": pass_, "calibration": made.calibration.model_copy(update={"scale": 0.5})})
    save_artifact(folder, made, probe, beside)
    return load_artifact(folder, verify=False)
