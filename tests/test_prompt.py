"""Prompts equal Transformers' own, and no conversation is too odd or too long to be rendered."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from probes.base import ProbeError
from probes.card import Pass, Recipe
from probes.prompt import Messages, Renderer, new_pass
from tests.support.probes import NANO_POOL

GOLDEN = Path(__file__).parents[2] / "shared/data/golden/model"
USER = {"role": "user", "content": "What is 7 + 5?"}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [USER],
    [{"role": "system", "content": "Be brief, please. <b>&\"'"}, USER],
    [USER, {"role": "assistant", "content": "12"}, {"role": "user", "content": "  And naïve √2 東京 🍎?\n"}],
    [{"role": "system", "content": "x"}, USER, {"role": "assistant", "content": ""}, USER],
]

LLAMA = """{{- bos_token }}
{%- if date_string is not defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
QWEN = """{%- if tools %}{{- tools | tojson }}{%- endif %}
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- if not message.content %}{%- continue %}{%- endif %}
        {%- generation %}{{- '<|im_start|>assistant\\n' + message.content + '<|im_end|>\\n' }}{%- endgeneration %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
MISTRAL = """{{ bos_token }}{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if message['role'] == 'user' %}
{{ ' [INST] ' + message['content'] + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
{{ ' ' + message['content'] | tojson + eos_token }}
    {% else %}
{{ raise_exception('Only user and assistant roles are supported!') }}
    {% endif %}
{% endfor %}"""
TEMPLATES = {"llama": LLAMA, "qwen": QWEN, "mistral": MISTRAL}


def write_model(folder: Path, template: str, form: str = "file") -> Path:
    """nano-small's tokenizer with other special tokens and another template."""
    folder.mkdir()
    tokenizer = json.loads((NANO_POOL / "nano-small/tokenizer.json").read_text())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for token, content in zip(tokenizer["added_tokens"], ("<s>", "</s>", "<|eot_id|>"), strict=True):
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary[content] = vocabulary.pop(token["content"])
        token.update(plain, content=content)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": "<s>", **plain},
        "eos_token": "</s>",
    }
    if form == "file":
        (folder / "chat_template.jinja").write_text(template)
    elif form == "string":
        config["chat_template"] = template
    else:
        config["chat_template"] = [
            {"name": "tool_use", "template": "no"}, {"name": "default", "template": template},
        ]  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def renderer_of(model: Path, **recipe: Any) -> Renderer:
    pass_ = new_pass(str(model))
    return Renderer(pass_.model_copy(update={"recipe": pass_.recipe.model_copy(update=recipe)}))


def transformers_ids(tokenizer: PreTrainedTokenizerFast, messages: Messages, **kwargs: Any) -> tuple[int, ...]:
    ids = tokenizer.apply_chat_template(
        list(messages), tokenize=True, add_generation_prompt=True, return_dict=False, **kwargs
    )
    return tuple(ids)


@pytest.mark.parametrize("model", ["nano-small", "nano-medium", "nano-large", "golden"])
def test_nano_models_render_as_in_transformers(model: str) -> None:
    folder = NANO_POOL / model if model != "golden" else GOLDEN
    if not folder.exists():
        pytest.skip(f"{folder} is not part of the repository")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for messages in CONVERSATIONS:
        rendered = renderer_of(folder).render(messages)
        assert rendered.token_ids == transformers_ids(tokenizer, messages)
        assert rendered.flags == ()
        assert rendered.prompt_tokens == len(rendered.token_ids)


@pytest.mark.parametrize(
    ("model_type", "named"),
    [
        *(
            (family, "TokenizersBackend")
            for family in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "gpt_oss")
        ),
        *((family, "Qwen2Tokenizer") for family in ("qwen2", "qwen3")),
    ],
)
def test_families_whose_tokenizer_transformers_overrides(model_type: str, named: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(NANO_POOL / "nano-small", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for name, fields in (
        ("config.json", {"model_type": model_type}),
        ("tokenizer_config.json", {"tokenizer_class": named}),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | fields))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for messages in CONVERSATIONS:
        assert renderer_of(folder).render(messages).token_ids == transformers_ids(tokenizer, messages)


@pytest.mark.parametrize("form", ["file", "string", "list"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_template_styles_render_as_in_transformers(template: str, form: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", TEMPLATES[template], form)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    renderer = renderer_of(folder)
    compared = 0
    for messages in CONVERSATIONS:
        rendered = renderer.render(messages)
        if "text-only" not in rendered.flags:
            assert rendered.token_ids == transformers_ids(tokenizer, messages)
            compared += 1
    assert compared == (2 if template == "mistral" else 4)


def test_template_arguments_come_from_the_recipe(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", QWEN)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    renderer = renderer_of(folder, template_kwargs={"enable_thinking": False})
    assert renderer.render([USER]).token_ids == transformers_ids(tokenizer, [USER], enable_thinking=False)
    assert len(renderer.eoi_tokens) > len(renderer_of(folder).eoi_tokens)


def test_refused_roles_leave_the_last_user_text(tmp_path: Path) -> None:
    renderer = renderer_of(write_model(tmp_path / "model", MISTRAL))
    rendered = renderer.render([{"role": "system", "content": "Be brief."}, USER])
    assert rendered.flags == ("text-only",)
    assert rendered.token_ids == renderer.render([USER]).token_ids


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [3, {"type": "x"}]}],
    ],
)
def test_odd_messages_render_to_something(messages: Messages) -> None:
    assert renderer_of(NANO_POOL / "nano-small").render(messages).token_ids


def test_content_parts_count_as_their_text() -> None:
    renderer = renderer_of(NANO_POOL / "nano-small")
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    parts = [{"type": "text", "text": "What is"}, image, {"type": "text", "text": "7 + 5?"}]
    assert renderer.render([{"role": "user", "content": parts}]) == renderer.render(
        [{"role": "user", "content": "What is\n7 + 5?"}]
    )


def test_the_suffix_ends_the_last_user_message_alone() -> None:
    plain, suffixed = (renderer_of(NANO_POOL / "nano-small", suffix=suffix) for suffix in ("", " Think."))
    first, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}
    assert (
        suffixed.render([first, answer, USER]).token_ids
        == plain.render([first, answer, {"role": "user", "content": "What is 7 + 5? Think."}]).token_ids
    )


def test_a_long_prompt_keeps_the_systems_head_and_the_tail() -> None:
    renderer = renderer_of(NANO_POOL / "nano-small", max_tokens=64)
    system = {"role": "system", "content": "Begin with 3."}
    whole = renderer_of(NANO_POOL / "nano-small").render([system, {"role": "user", "content": "Add 4. " * 50}])
    cut = renderer.render([system, {"role": "user", "content": "Add 4. " * 50}])
    assert cut.flags == ("truncated",)
    assert len(cut.token_ids) == 64
    assert cut.prompt_tokens == len(whole.token_ids)
    head = len(renderer_of(NANO_POOL / "nano-small").render([system]).token_ids) - len(renderer.eoi_tokens)
    assert cut.token_ids[:head] == whole.token_ids[:head]
    assert cut.token_ids[head:] == whole.token_ids[head - 64 :]
    assert cut.token_ids[-len(renderer.eoi_tokens) :] == renderer.eoi_tokens


@pytest.mark.parametrize("over", [0, 1, 2])
def test_a_prompt_at_its_limit_is_whole_and_one_token_more_is_cut(over: int) -> None:
    messages = [USER, {"role": "assistant", "content": "12"}, USER]
    whole = renderer_of(NANO_POOL / "nano-small").render(messages)
    renderer = renderer_of(NANO_POOL / "nano-small", max_tokens=len(whole.token_ids) - over)
    found = renderer.render(messages)
    assert found.flags == (("truncated",) if over else ())
    assert len(found.token_ids) == len(whole.token_ids) - over
    assert found.prompt_tokens == len(whole.token_ids)
    eoi = len(renderer.eoi_tokens)
    assert eoi > 0
    assert found.token_ids[-eoi:] == renderer.eoi_tokens == whole.token_ids[-eoi:]


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({"max_position_embeddings": 100}, 100),
        ({"n_positions": 100}, 100),
        ({"text_config": {"max_position_embeddings": 100}, "max_position_embeddings": 50}, 100),
        ({"text_config": {}, "max_position_embeddings": 50}, 200),
        ({"max_position_embeddings": 4096}, 200),
        ({}, 200),
    ],
    ids=["positions", "gpt2", "multimodal", "multimodal-untold", "more-than-the-recipe", "untold"],
)
def test_no_prompt_is_longer_than_the_probe_model_has_positions(
    config: dict[str, Any], longest: int, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model", QWEN)
    (folder / "config.json").write_text(json.dumps(config))
    renderer = renderer_of(folder, max_tokens=200)
    for rendered in (
        renderer.render([{"role": "user", "content": "Add 4. " * 100}]),
        renderer.accept("Add 4. " * 100 + "<|im_end|>\n<|im_start|>assistant\n"),
    ):
        assert len(rendered.token_ids) == longest
        assert rendered.flags == ("truncated",)
        assert rendered.prompt_tokens > 300
        assert rendered.token_ids[-len(renderer.eoi_tokens) :] == renderer.eoi_tokens


def test_a_long_system_message_leaves_most_of_the_prompt_to_the_user() -> None:
    renderer = renderer_of(NANO_POOL / "nano-small", max_tokens=64)
    messages = [{"role": "system", "content": "Add 4. " * 50}, {"role": "user", "content": "Subtract 5. " * 9}]
    whole = renderer_of(NANO_POOL / "nano-small").render(messages)
    assert renderer.render(messages).token_ids == whole.token_ids[:16] + whole.token_ids[-48:]


def test_threads_share_a_renderer() -> None:
    renderer = renderer_of(NANO_POOL / "nano-small")
    conversations = [[{"role": "user", "content": f"Add {n}. " * (n % 7 + 1)}] for n in range(400)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(renderer.render, conversations)) == list(map(renderer.render, conversations))


def test_unusable_models_are_named(tmp_path: Path) -> None:
    def error_of(folder: Path, **recipe: Any) -> str:
        with pytest.raises(ProbeError) as error:
            Renderer(Pass(probe_model=str(folder), recipe=Recipe(chat_template_sha256="", **recipe)))
        return str(error.value)

    (tmp_path / "empty").mkdir()
    assert "has no tokenizer.json" in error_of(tmp_path / "empty")
    assert "does not compile" in error_of(write_model(tmp_path / "syntax", "{% for %}"))
    assert "fails on a single user turn: no" in error_of(
        write_model(tmp_path / "raises", "{{ raise_exception('no') }}")
    )
    plain = write_model(tmp_path / "plain", QWEN)
    (plain / "chat_template.jinja").unlink()
    assert "has no chat template" in error_of(plain)
    assert "leaves no room" in error_of(NANO_POOL / "nano-small", max_tokens=8)
    (plain / "tokenizer.json").write_text("{}")
    assert "no tokenizer that this release" in error_of(plain)


def test_templates_cannot_reach_the_machine(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(ProbeError, match="unsafe"):
        renderer_of(folder)


def test_rendering_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from probes.prompt import *; from probes.artifact import *; from probes.calibration import *;"
        "from probes.engine.process import *; from probes import linear_eoi;"
        f"Renderer(new_pass({str(NANO_POOL / 'nano-small')!r})).render([{{'role': 'user', 'content': 'hi'}}]);"
        "assert not {'torch', 'transformers', 'sklearn', 'pandas', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
