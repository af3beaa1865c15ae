"""Which checkpoints are read, what of them, and which are refused by name."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    CLIPTextConfig,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    T5Config,
    XLNetConfig,
    modeling_utils,
)

from probes.base import ProbeError
from probes.card import Dtype, Pass, Recipe, Site
from probes.engine.probe_model import ProbeModel
from probes.engine.reading import Reading
from tests.support.architectures import SIZES, save
from tests.support.quantised import save_mxfp4

PROMPTS = [tuple(range(3, 3 + n)) for n in (40, 7, 90, 12)]
LAST = Site(layer=SIZES["num_hidden_layers"], position=-1)


def pass_of(folder: Path, dtype: Dtype = "float32") -> Pass:
    return Pass(probe_model=str(folder), dtype=dtype, recipe=Recipe(chat_template_sha256=""))


def activations(folder: Path, site: Site = LAST) -> np.ndarray[Any, Any]:
    return ProbeModel(pass_of(folder), Reading((site,)), "cpu").read(PROMPTS).activations[site]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Bytes of the tensors that are read from checkpoints, by name."""
    seen: Counter[str] = Counter()

    class Slice:
        def __init__(self, name: str, stored: Any) -> None:
            self.name, self.stored = name, stored

        def __getitem__(self, which: Any) -> Any:
            tensor = self.stored[which]
            seen[self.name] += tensor.nbytes
            return tensor

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stored, name)

    class File:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.file = safe_open(*arguments, **options)

        def __enter__(self) -> "File":
            return self

        def __exit__(self, *error: object) -> None:
            self.file.__exit__(*error)

        def keys(self) -> list[str]:
            return list(self.file.keys())

        def metadata(self) -> Any:
            return self.file.metadata()

        def get_slice(self, name: str) -> Slice:
            return Slice(name, self.file.get_slice(name))

        def get_tensor(self, name: str) -> Any:
            return self.get_slice(name)[...]

    monkeypatch.setattr(modeling_utils, "safe_open", File)
    return seen


def test_only_blocks_up_to_the_layer_are_read_and_held(tmp_path: Path, read: Counter[str]) -> None:
    depth = 12
    config = LlamaConfig(**SIZES | {"num_hidden_layers": depth}, tie_word_embeddings=False)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    stored = {name: tensor.nbytes for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    block = sum(size for name, size in stored.items() if ".layers.0." in name)
    beside = stored["model.embed_tokens.weight"]
    for layer in (1, 5, depth):
        read.clear()
        model = ProbeModel(pass_of(tmp_path), Reading((Site(layer=layer, position=-1),)), "cpu")
        expected = {
            name: size
            for name, size in stored.items()
            if "lm_head" not in name and (".layers." not in name or int(name.split(".")[2]) < layer)
        }
        assert read == expected, "every tensor once, whole"
        norm = stored["model.norm.weight"]
        assert sum(read.values()) == beside + layer * block + norm
        held = sum(parameter.nbytes for parameter in model._model.parameters())
        assert held == beside + layer * block + (norm if layer == depth else 0)
        assert not [name for name, _ in model._model.named_modules() if "head" in name]


@pytest.mark.parametrize("within", ["language_model.model.", "model.language_model."])
def test_of_a_multimodal_checkpoint_the_language_model_alone_is_read(
    tmp_path: Path, within: str, read: Counter[str]
) -> None:
    """By either of the names that libraries give its tensors. (That the numbers are right, test_parity tells.)"""
    save("gemma3-multimodal", tmp_path)
    expected = activations(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("language_model.model.", within): tensor for name, tensor in tensors.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    read.clear()
    np.testing.assert_array_equal(activations(tmp_path), expected)
    assert set(read) == {name for name in renamed if name.startswith(within)}
    assert len(read) < len(renamed)


def test_mxfp4_checkpoints_are_read_as_what_they_hold(tmp_path: Path) -> None:
    """Without accelerate, or kernels."""
    quantised, plain = tmp_path / "quantised", tmp_path / "plain"
    save_mxfp4(quantised, plain)
    for site in (Site(layer=2, position=-1), LAST):
        np.testing.assert_array_equal(activations(quantised, site), activations(plain, site))
    theirs = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    with torch.no_grad():
        hidden = theirs(torch.tensor(PROMPTS[:1]), output_hidden_states=True).hidden_states
    np.testing.assert_allclose(activations(quantised)[0], hidden[-1][0, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_parameters_are_of_the_passs_dtype(tmp_path: Path, dtype: Dtype) -> None:
    """However they are stored."""
    save_mxfp4(tmp_path / "quantised", tmp_path / "plain")
    model = ProbeModel(pass_of(tmp_path / "quantised", dtype), Reading((Site(layer=1, position=-1),)), "cpu")
    assert {parameter.dtype for parameter in model._model.parameters()} == {getattr(torch, dtype)}


def test_other_quantisations_are_refused_by_name(tmp_path: Path) -> None:
    save("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for quantisation, name in (
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"load_in_8bit": True}, "no method named"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": quantisation}))
        with pytest.raises(ProbeError, match=rf"are quantised \({name}\); only mxfp4 .* model without quantisation"):
            activations(tmp_path)


def test_a_package_that_lacks_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("llama", tmp_path)

    def lacking(*arguments: Any, **options: Any) -> None:
        raise ImportError("This modeling file requires the following packages: natten")

    monkeypatch.setattr(AutoModel, "from_pretrained", lacking)
    with pytest.raises(ProbeError, match="requires the following packages: natten; install what it lacks, or choose"):
        activations(tmp_path)


SMALL: dict[str, Any] = {name: SIZES[name] for name in ("vocab_size", "hidden_size", "pad_token_id", "eos_token_id")}
BERT = BertConfig(**SMALL, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
BOTH_WAYS = "with attention in both directions: use a causal language model"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (BERT, "is of type bert, which is no decoder"),
        (T5Config(vocab_size=640, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=2), "is of type t5, which is"),
        (
            BartConfig(
                **SMALL, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                decoder_attention_heads=2,
            ),
            "is of type bart, which is no decoder",
        ),
        (
            CLIPTextConfig(**SMALL, bos_token_id=1, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2),
            "of which Transformers has no causal language model",
        ),
        (Gemma3TextConfig(**SIZES, head_dim=16, use_bidirectional_attention=True), f"type gemma3_text, {BOTH_WAYS}"),
        (LlamaConfig(**SIZES, is_causal=False), f"is of type llama, {BOTH_WAYS}"),
        (
            XLNetConfig(vocab_size=640, d_model=32, n_layer=2, n_head=2, d_inner=48, pad_token_id=0),
            "is of type xlnet, whose tokens see those after them: use a causal language model",
        ),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)  # fmt: skip
def test_what_is_not_causal_is_refused_by_name(config: PreTrainedConfig, words: str, tmp_path: Path) -> None:
    """Padded or packed, tokens would find something other than in a prompt alone."""
    torch.manual_seed(0)
    AutoModel.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(ProbeError, match=words):
        activations(tmp_path, Site(layer=config.num_hidden_layers, position=-1))


def test_a_decoder_of_a_type_that_is_mostly_none_is_read(tmp_path: Path) -> None:
    config = BertConfig.from_dict({**BERT.to_dict(), "is_decoder": True})
    model = AutoModel.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = [model(torch.tensor([prompt])).last_hidden_state[0, -1].numpy() for prompt in PROMPTS]
    np.testing.assert_allclose(activations(tmp_path, Site(layer=2, position=-1)), expected, atol=1e-5)
