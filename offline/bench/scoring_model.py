"""What `pika bench scoring` reads prompts with: a probe model by name or path, a probe with random weights on it."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probes.artifact import Artifact, load_artifact, save_artifact
from probes.card import Dtype, Site
from probes.linear_eoi import LinearEoi
from probes.prompt import new_pass

NANO_POOL = Path(__file__).parents[1] / "nano_pool"
NANO = NANO_POOL / "nano-medium"
LENGTHS = (50, 400)
"""Tokens of a prompt: uniform, both included."""
DEFAULT: dict[str, Any] = {
    "vocab_size": 32_000, "hidden_size": 768, "intermediate_size": 2_304, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 4, "tie_word_embeddings": True,
}  # fmt: skip
"""Qwen2-shaped: 82 M parameters, 107 M if the LM head's tied ones are counted."""


@dataclass(frozen=True)
class Model:
    folder: Path
    name: str
    layer: int
    artifact: Artifact
    dtype: Dtype
    vocabulary: int
    device: str
    """cpu or cuda:N"""


def make(shape: str, layer: int | None, dtype: Dtype, scratch: Path, device: str = "cpu") -> Model:
    """
    Args:
        shape: nano, default, or a checkpoint's folder.
        layer: read by the probe; None: as deep as the nano pool's own probes, half the depth of others.
        scratch: where the probe, and the default shape's random weights, are written.

    Raises:
        ProbeError: the folder holds no probe model, or there is no such device.
    """
    from probes.engine.loading import find_device, read_config

    device = str(find_device(device))

    folder = {"nano": NANO, "default": scratch / "model"}.get(shape, Path(shape))
    if shape == "default":
        _random_model(folder)
    pass_ = new_pass(str(folder.absolute()), dtype)
    config = read_config(pass_)
    if layer is None:
        layer = _nano_layer() if shape == "nano" else config.num_hidden_layers // 2
    site = Site(layer=layer, position=-1)
    weight = np.random.default_rng(0).normal(size=config.hidden_size).astype(np.float32)
    like = load_artifact(NANO_POOL / "probes/nano-medium").card
    card = like.model_copy(
        update={
            "kind": LinearEoi.kind, "pass_": pass_, "site": site, "d_model": config.hidden_size, "parameters": {},
            "output_tokens": None, "statistics": None, "probe_model_fingerprint": None, "canary_prompt": None,
            "canary_token_ids": None, "files": ["config.json", "probe.safetensors"],
        }
    )  # fmt: skip
    save_artifact(scratch / "probe", card, LinearEoi(weight / 100, site))
    artifact = load_artifact(scratch / "probe", verify=False)
    return Model(folder, shape, layer, artifact, dtype, int(config.vocab_size), device)


def prompts(model: Model, n: int, seed: int) -> list[tuple[int, ...]]:
    """Random token ids, of lengths drawn from `LENGTHS`; no two prompts are alike."""
    return filled(model, np.random.default_rng(seed).integers(*LENGTHS, size=n, endpoint=True).tolist(), seed)


def filled(model: Model, lengths: Sequence[int], seed: int) -> list[tuple[int, ...]]:
    """Random token ids, of these lengths."""
    rng = np.random.default_rng([seed, len(lengths)])
    return [tuple(rng.integers(3, model.vocabulary, size=length).tolist()) for length in lengths]


def _random_model(folder: Path) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from probes.engine.loading import quiet

    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**DEFAULT))  # type: ignore[no-untyped-call]  # Transformers leaves it open
    with quiet():
        model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (NANO / file).exists():
            shutil.copy(NANO / file, folder)


def _nano_layer() -> int:
    artifacts = [load_artifact(folder, verify=False) for folder in sorted((NANO_POOL / "probes").iterdir())]
    return max(site.layer for artifact in artifacts for site in artifact.probe.sites)
