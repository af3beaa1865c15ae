"""A nano model's folder, as Transformers and vLLM load it, with the record of its training."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from offline.nano_pool.tokenizer import CHAT_TEMPLATE, END, PAD, SPECIAL
from offline.provenance import versions

RECORD = "training.json"


def save(folder: Path, model: LlamaForCausalLM, tokenizer: Tokenizer, record: dict[str, Any]) -> None:
    """Write the whole folder or nothing.

    Raises:
        OSError: it cannot be written, or is there already.
    """
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]  # untyped there
            do_sample=False, eos_token_id=END, pad_token_id=PAD
        )
        model.save_pretrained(unfinished)
        PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # untyped there
            tokenizer_object=tokenizer,
            eos_token=SPECIAL[END],
            pad_token=SPECIAL[PAD],
            chat_template=CHAT_TEMPLATE,
            model_max_length=model.config.max_position_embeddings,
            clean_up_tokenization_spaces=False,
        ).save_pretrained(unfinished)
        text = json.dumps({**record, "versions": versions()}, indent=1)
        (unfinished / RECORD).write_text(text + "\n", encoding="utf-8")
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def load(folder: Path) -> LlamaForCausalLM:
    """In float32, to be trained on."""
    model = LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    assert isinstance(model, LlamaForCausalLM)
    return model


def read_record(folder: Path) -> dict[str, Any] | None:
    """How the model there was trained; None where there is none.

    Raises:
        OSError: something else is there.
    """
    if not folder.exists():
        return None
    record: dict[str, Any] = json.loads((folder / RECORD).read_text("utf-8"))
    return record
