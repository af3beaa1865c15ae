"""From messages to the probe model's token ids, once for training and serving.

    renderer = Renderer(pass_)
    renderer.render([{"role": "user", "content": "What is 7 + 5?"}]).token_ids

Needs tokenizers and jinja2 alone: the gateway's main process renders, and must stay small.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Encoding

from probes.base import ProbeError
from probes.card import Dtype, Pass, Recipe
from probes.chat_template import compile_template
from probes.source import model_file, optional_model_file, read_json
from probes.tokenizer import load_tokenizer

Messages = Sequence[Mapping[str, Any]]
"""A conversation in OpenAI's form; content is a string or a list of content parts."""

CANARY_PROMPT = "Ann's 12 apples cost $3.50; naïve √2 ≈ 1.414, x_1 += 27\n\tdef f(x): return 2**x  # 東京 🍎"
"""Exercises what tokenizers disagree on: digits, spaces, accents, operators, scripts, bytes."""

TEXT_CHARACTERS = 100_000
"""What text probes read of a conversation at most, some 25,000 tokens: what fits an engine's queue."""

POSITIONS = ("max_position_embeddings", "n_positions")
"""What configurations call a model's number of positions; GPT-2's family has the second."""

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Rendered:
    """One conversation as a probe model's prompt."""

    token_ids: tuple[int, ...]
    flags: tuple[str, ...]
    """`truncated`: middle tokens were cut; `text-only`: the template refused the conversation."""
    prompt_tokens: int
    """Tokens before any were cut."""


class Renderer:
    """Renders conversations for one pass. Threads may share it.

    Raises:
        ProbeError: the probe model's folder or Hub repository lacks a tokenizer or a chat template that works.
    """

    def __init__(self, pass_: Pass) -> None:
        self.pass_ = pass_
        self._recipe = pass_.recipe
        self._max_tokens = longest_prompt(pass_)
        self._tokenizer = load_tokenizer(pass_)
        config = read_json(optional_model_file(pass_, "tokenizer_config.json"))
        source = _template_source(pass_, config)
        self.chat_template_sha256 = hashlib.sha256(source.encode()).hexdigest()
        self._template = compile_template(source)
        self._special_tokens = {name: text for name in SPECIAL_TOKENS if (text := _token_text(config.get(name)))}
        bos = self._special_tokens.get("bos_token")
        self._bos_id = None if bos is None else self._tokenizer.token_to_id(bos)
        try:
            self.eoi_tokens = _common_tail(self._turn("a").ids, self._turn("7").ids)
            """End-of-instruction tokens: what the template appends after the user's text."""
        except Exception as error:
            raise ProbeError(
                f"the chat template of {pass_.probe_model} fails on a single user turn: {error}; "
                "use an instruction-tuned probe model, or mend its chat_template.jinja"
            ) from error
        if self._max_tokens < 2 * len(self.eoi_tokens):
            raise ProbeError(
                f"a prompt of {self._max_tokens} tokens, the lesser of recipe.max_tokens and the positions of "
                f"{pass_.probe_model}, leaves no room for text beside its {len(self.eoi_tokens)} end-of-instruction "
                "tokens: raise recipe.max_tokens, or use another probe model"
            )

    def render(self, messages: Messages) -> Rendered:
        """Token ids of one conversation, the recipe's suffix included."""
        turns = [{"role": str(message.get("role")), "content": text_of(message.get("content"))} for message in messages]
        last_user = next((i for i in reversed(range(len(turns))) if turns[i]["role"] == "user"), None)
        if last_user is not None:
            turns[last_user]["content"] += self._recipe.suffix
        flags = []
        system_text = turns[0]["content"] if turns and turns[0]["role"] == "system" else ""
        try:
            prompt, encoding = self._encode(turns)
        except Exception:  # the template is somebody's program: it may raise anything
            flags.append("text-only")
            system_text = ""
            text = "" if not turns else turns[-1 if last_user is None else last_user]["content"]
            prompt, encoding = self._encode([{"role": "user", "content": text}])
        return self._cut(prompt, encoding, system_text, flags)

    def accept(self, prompt: str) -> Rendered:
        """Token ids of a prompt that is rendered already, as it stands."""
        return self._cut(prompt, self._tokens(prompt), "", [])

    def tokenize(self, text: str) -> list[int]:
        """Token ids of bare text, without template or special tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _turn(self, text: str) -> Encoding:
        return self._encode([{"role": "user", "content": text}])[1]

    def _encode(self, turns: list[dict[str, str]]) -> tuple[str, Encoding]:
        variables = {**self._special_tokens, **self._recipe.template_kwargs}
        prompt = self._template.render(
            messages=turns, tools=None, documents=None, add_generation_prompt=True, **variables
        )
        # The template has written the special tokens itself.
        return prompt, self._tokens(prompt)

    def _tokens(self, prompt: str) -> Encoding:
        # `encode` would hold the GIL: an event loop would stand still while a thread beside it tokenises.
        [encoding] = self._tokenizer.encode_batch([prompt], add_special_tokens=False)
        return encoding

    def _cut(self, prompt: str, encoding: Encoding, system_text: str, flags: list[str]) -> Rendered:
        token_ids = encoding.ids
        if len(token_ids) > self._max_tokens:
            flags.append("truncated")
            head = self._head_tokens(prompt, encoding, system_text)
            token_ids = token_ids[:head] + token_ids[head - self._max_tokens :]
        return Rendered(tuple(token_ids), tuple(flags), len(encoding.ids))

    def _head_tokens(self, prompt: str, encoding: Encoding, system_text: str) -> int:
        """How many first tokens a cut prompt keeps: the system message's, up to a quarter of the limit."""
        head = int(self._bos_id is not None and encoding.ids[0] == self._bos_id)
        text = system_text.strip()  # templates strip
        start = prompt.find(text) if text else -1
        if start < 0:
            return head
        end = start + len(text)
        limit = self._max_tokens // 4
        within = sum(1 for _, token_end in encoding.offsets[: limit + 1] if token_end <= end)
        return max(head, min(within, limit))


def longest_prompt(pass_: Pass) -> int:
    """Tokens beyond which prompts are cut: the recipe's limit, or the probe model's positions where these are fewer.

    Raises:
        ProbeError: the probe model's configuration cannot be read.
    """
    config = read_json(optional_model_file(pass_, "config.json"))
    language = config.get("text_config", config)  # of a multimodal model
    named = [language.get(name) for name in POSITIONS] if isinstance(language, dict) else []
    return min([pass_.recipe.max_tokens, *(positions for positions in named if isinstance(positions, int))])


def new_pass(probe_model: str, dtype: Dtype = "float32") -> Pass:
    """The pass of probes that are about to be trained; a Hub model is pinned to its commit.

    Args:
        probe_model: an absolute folder, or a Hub id.
        dtype: what it is run in.

    Raises:
        ProbeError: the model lacks a tokenizer or a chat template.
    """
    unpinned = Pass(probe_model=probe_model, recipe=Recipe(chat_template_sha256=""))
    # The Hub's cache keeps each commit's files in a folder that bears the commit's name.
    revision = None if Path(probe_model).is_dir() else model_file(unpinned, "config.json").parent.name
    pinned = unpinned.model_copy(update={"revision": revision})
    config = read_json(optional_model_file(pinned, "tokenizer_config.json"))
    sha256 = hashlib.sha256(_template_source(pinned, config).encode()).hexdigest()
    return Pass(probe_model=probe_model, revision=revision, dtype=dtype, recipe=Recipe(chat_template_sha256=sha256))


def conversation_text(messages: Messages) -> str:
    """What probes read that read text alone: the messages' texts, one below the other, `bounded`."""
    return bounded("\n".join(text_of(message.get("content")) for message in messages))


def bounded(text: str) -> str:
    """A text as text probes read it, in training and in serving: of a longer one than they read, head and tail."""
    half = TEXT_CHARACTERS // 2
    return f"{text[:half]}\n{text[-half:]}" if len(text) > TEXT_CHARACTERS else text


def was_cut(bounded_text: str) -> bool:
    """Whether `bounded` left something out, which the line break in its place shows."""
    return len(bounded_text) > TEXT_CHARACTERS


def text_of(content: Any) -> str:
    """The text of a message's content: a string, or a list of content parts of which the text parts count."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        parts = (part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text")
        return "\n".join(part for part in parts if isinstance(part, str))
    return ""


def has_more_than_text(messages: Messages) -> bool:
    """Whether some content part is none of text, an image or sound say, which no probe reads."""
    contents = (message.get("content") for message in messages)
    parts = (
        part
        for content in contents
        if isinstance(content, Sequence) and not isinstance(content, str)
        for part in content
    )
    return any(not isinstance(part, Mapping) or part.get("type") != "text" for part in parts)


def _template_source(pass_: Pass, config: Mapping[str, Any]) -> str:
    """The chat template: a file of its own, else the tokenizer configuration's, the default one of several."""
    file = optional_model_file(pass_, "chat_template.jinja")
    if file is not None:
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if not isinstance(template, str):
        raise ProbeError(
            f"{pass_.probe_model} has no chat template (chat_template.jinja, or chat_template in "
            "tokenizer_config.json): use an instruction-tuned probe model, or add one"
        )
    return template


def _token_text(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None


def _common_tail(first: list[int], second: list[int]) -> tuple[int, ...]:
    length = 0
    while length < min(len(first), len(second)) and first[-1 - length] == second[-1 - length]:
        length += 1
    return tuple(first[len(first) - length :])
