"""The rows that the nano models learn from, and `pika nano train --quick` for real."""

import itertools
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from offline.benchmarks.running_total import RunningTotal, total
from offline.nano_pool.recipe import RECIPES
from offline.nano_pool.rows import (
    HEAD,
    TAIL,
    batch,
    chains,
    direct_answer,
    direct_row,
    stepwise_answer,
    stepwise_row,
)
from offline.nano_pool.tokenizer import train_tokenizer
from offline.nano_pool.training import HIDDEN, new_model
from offline.verifiers.boxed import Boxed
from server.__main__ import main

pytestmark = pytest.mark.slow

CHAINS = list(itertools.islice(chains(0), 50))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three models, after a few steps each."""
    out = tmp_path_factory.mktemp("nano")
    assert main(["nano", "train", "--quick", "--out", str(out)]) == 0
    return out


def test_the_answers_taught_are_right() -> None:
    verifier = Boxed()
    for chain in CHAINS:
        for n in range(1, len(chain.steps) + 1):
            for answer in (direct_answer(chain.steps[:n]), stepwise_answer(chain.steps[:n])):
                assert verifier.is_correct(verifier.extract(answer), str(total(chain.steps[:n]))), answer
    assert (
        stepwise_answer([("=", 4), ("*", 2), ("+", 4), ("=", 9), ("-", 4)])
        == r"4 * 2 = 8 + 4 = 12; 9 - 4 = 5 \boxed{5}"
    )


def test_nothing_is_taught_that_a_held_out_split_could_ask() -> None:
    assert {RunningTotal.split_of(chain.text) for chain in CHAINS} == {"train"}


def test_every_number_is_one_token(tokenizer: Tokenizer) -> None:
    for number in range(100):
        assert len(tokenizer.encode(str(number)).ids) == len(tokenizer.encode(f" {number}").ids) == 1
    assert train_tokenizer().to_str() == tokenizer.to_str(), "equal seeds, equal tokenizers"


@torch.inference_mode()
def test_a_question_in_a_shared_row_looks_as_it_does_alone(tokenizer: Tokenizer) -> None:
    model = new_model(RECIPES[0])
    rows = batch([direct_row(chain, tokenizer) for chain in CHAINS[:4]])
    mask = torch.where(torch.from_numpy(rows.visible), 0.0, HIDDEN)[:, None]
    together = model(
        input_ids=torch.from_numpy(rows.token_ids),
        attention_mask=mask,
        position_ids=torch.from_numpy(rows.positions),
    ).logits
    for i, chain in enumerate(CHAINS[:4]):
        answers = np.flatnonzero(rows.learnt[i])
        for n, of_one in enumerate(np.split(answers, np.flatnonzero(np.diff(answers) > 1) + 1), start=1):
            asked = " ".join([chain.question, *chain.statements[:n]])
            ids = tokenizer.encode(HEAD + asked + TAIL + direct_answer(chain.steps[:n]) + "<|im_end|>").ids
            alone = model(input_ids=torch.tensor([ids])).logits[0, -len(of_one) - 1 : -1]
            assert rows.token_ids[i, of_one].tolist() == ids[-len(of_one) :]
            torch.testing.assert_close(together[i, of_one - 1], alone, atol=1e-5, rtol=1e-4)


def test_a_stepwise_row_is_the_chat(tokenizer: Tokenizer) -> None:
    for chain in CHAINS:
        row = stepwise_row(chain, tokenizer)
        text = HEAD + chain.text + TAIL + stepwise_answer(chain.steps) + "<|im_end|>"
        assert row.token_ids == tokenizer.encode(text).ids


def test_added_layers_begin_as_identities() -> None:
    small, medium = RECIPES[:2]
    start = new_model(small)
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(new_model(medium, start)(tokens).logits, start(tokens).logits)


def test_models_learn_and_load(trained: Path) -> None:
    for recipe in RECIPES:
        record = json.loads((trained / recipe.name / "training.json").read_text())
        losses = record["loss_every_20_steps"]
        assert losses[-1] < 0.9 * losses[0], recipe.name
        assert record["versions"]["torch"] == torch.__version__
        assert 0 <= record["accuracy"] <= 1
        model = AutoModelForCausalLM.from_pretrained(trained / recipe.name)
        assert isinstance(model, LlamaForCausalLM)
        assert model.dtype == torch.bfloat16
        tokenizer = AutoTokenizer.from_pretrained(trained / recipe.name)
        chat = [{"role": "user", "content": "Take 3. Add 4."}]
        assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
            HEAD + "Take 3. Add 4." + TAIL
        )


def test_what_is_trained_is_not_trained_again(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in trained.rglob("*") if file.is_file()}
    assert main(["nano", "train", "--quick", "--out", str(trained)]) == 0
    assert {file: file.stat().st_mtime_ns for file in trained.rglob("*") if file.is_file()} == before
    assert main(["nano", "train", "--quick", "--out", str(trained), "--seed", "1"]) == 2
    assert "give another --out" in capsys.readouterr().err


def test_the_documented_command_trained_the_nano_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed is of the recipe as it stands, so the command finds nothing left to train."""
    pool = Path(__file__).parents[1] / "offline" / "nano_pool"
    [documented] = re.findall(
        r"^\.venv/bin/pika (nano train .*)$", (pool / "README.md").read_text(), flags=re.MULTILINE
    )
    monkeypatch.chdir(pool.parents[1])
    before = {file: file.stat().st_mtime_ns for file in pool.rglob("*") if file.is_file()}
    assert main(shlex.split(documented)) == 0
    assert {file: file.stat().st_mtime_ns for file in pool.rglob("*") if file.is_file()} == before
    wanted = {"nano-small": (0.40, 0.60), "nano-medium": (0.70, 0.88), "nano-large": (0.88, 0.96)}
    for name, (low, high) in wanted.items():
        record = json.loads((pool / name / "training.json").read_text())
        assert shlex.split(record["command"]) == ["pika", *shlex.split(documented)]
        assert low <= record["accuracy"] <= high
