"""The nano models' tokenizer: byte-level BPE in which every number from 0 to 99 is one token."""

import itertools

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from offline.nano_pool.rows import chains, direct_answer, stepwise_answer

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PAD, END = 0, 2
VOCABULARY = 640
"""What embeddings have room for; as many merges as the texts offer are used."""
WORDS = r"\\boxed\{| ?\p{L}+| ?\d{1,2}|\s| ?[^\s\p{L}\d]"
CHAINS = 4000
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(seed: int = 0) -> Tokenizer:
    """From problems and answers as the models will see them. Equal seeds give equal tokenizers."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(mark, special=True, normalized=False) for mark in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [
        text
        for chain in itertools.islice(chains(seed), CHAINS)
        for text in (chain.text, direct_answer(chain.steps), stepwise_answer(chain.steps))
    ]
    numbers = [f"{number} {number}" for number in range(100)] * 50  # rare ones merge too
    tokenizer.train_from_iterator([*texts, *numbers, *["assistant", "user", "system"] * 50], trainer)
    return tokenizer
