"""A probe model's tokenizer, as Transformers loads it, without Transformers."""

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

from probes.base import ProbeError
from probes.card import Pass
from probes.source import model_file, optional_model_file, read_json

QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2's tokenizer splits text before its merges."""


def load_tokenizer(pass_: Pass) -> Tokenizer:
    """
    Raises:
        ProbeError: the probe model has no tokenizer.json, or one that this release of tokenizers cannot read.
    """
    file = model_file(pass_, "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise ProbeError(f"{file} is no tokenizer that this release of tokenizers reads: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if _is_qwen2(pass_):
        # Of this family Transformers, and with it vLLM, takes vocabulary and merges alone from the file.
        tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
        tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _is_qwen2(pass_: Pass) -> bool:
    """By the model's type, or by the tokenizer class that it names."""
    if read_json(optional_model_file(pass_, "config.json")).get("model_type") == "qwen2":
        return True
    named = read_json(optional_model_file(pass_, "tokenizer_config.json")).get("tokenizer_class")
    return named in ("Qwen2Tokenizer", "Qwen2TokenizerFast")
