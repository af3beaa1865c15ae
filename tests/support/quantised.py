"""gpt-oss's checkpoints as they are published: experts in MXFP4, everything else in bfloat16."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GptOssConfig

from tests.support.architectures import SIZES, SLIDING, WINDOW

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What three bits stand for; a fourth is the sign."""
BLOCK, BIAS = 32, 127


def save_mxfp4(folder: Path, plain: Path) -> None:
    """A checkpoint with random numbers in its experts, and beside it the same one without quantisation."""
    torch.manual_seed(0)
    config = GptOssConfig(
        **SIZES | {"intermediate_size": 64}, head_dim=16, layer_types=SLIDING, sliding_window=WINDOW,
        num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(plain)
    tensors = load_file(plain / "model.safetensors")
    quantised = dict(tensors)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, into, out = quantised.pop(name).shape
        blocks = torch.randint(0, 256, (experts, out, into // BLOCK, BLOCK // 2), dtype=torch.uint8)
        scales = torch.randint(BIAS - 5, BIAS - 2, blocks.shape[:3], dtype=torch.uint8)
        quantised |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        tensors[name] = _values(blocks, scales).to(torch.bfloat16)
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    folder.mkdir()
    save_file(quantised, folder / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((plain / "config.json").read_text())
    written["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(written))


def _values(blocks: Tensor, scales: Tensor) -> Tensor:
    """(experts, out, blocks, bytes) to (experts, in, out): a byte holds two numbers, the first in its low bits."""
    bits = torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-2).long()
    values = torch.tensor(E2M1)[bits % 8] * torch.where(bits < 8, 1.0, -1.0) * 2.0 ** (scales.float() - BIAS)[..., None]
    return values.flatten(-2).transpose(1, 2).contiguous()
