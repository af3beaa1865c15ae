"""The truncated forward pass equals the whole model's, whatever the batch."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from probes import calibration
from probes.artifact import Artifact, load_artifact, save_artifact
from probes.base import Activations, Inputs, ProbeError
from probes.card import OutputTokens, Pass, Recipe, Site
from probes.engine.base import Prompt
from probes.engine.batch import micro_batches
from probes.engine.loading import n_layers
from probes.engine.local import LocalEngine
from probes.engine.packing import Ids
from probes.engine.probe_model import ProbeModel
from probes.engine.reading import Hidden, Reading
from probes.linear_eoi import LinearEoi
from probes.output_tokens import WEIGHT
from tests.support.probes import NANO_POOL, artifact, card

POSITIONS = (-5, -4, -3, -2, -1)


def pass_of(folder: Path) -> Pass:
    return Pass(probe_model=str(folder), recipe=Recipe(chat_template_sha256=""))


def prompts(n: int = 9, seed: int = 0) -> list[tuple[int, ...]]:
    """Of mixed lengths."""
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(3, 600, size=size).tolist()) for size in rng.integers(5, 90, size=n)]


def activations(folder: Path, prompts: list[tuple[int, ...]], *sites: Site) -> Activations:
    """Ours: (n, sites, d_model)."""
    inputs = ProbeModel(pass_of(folder), Reading(sites), "cpu").read(prompts)
    return np.stack([inputs.activations[site] for site in sites], axis=1)


def reference(folder: Path, prompts: list[tuple[int, ...]]) -> Activations:
    """Transformers' own hidden states of the whole model, one prompt at a time: (n, layers, positions, d_model)."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    with torch.no_grad():
        for prompt in prompts:
            hidden = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
            found.append(np.stack([[layer[0, position].numpy() for position in POSITIONS] for layer in hidden]))
    return np.stack(found)


@pytest.fixture(scope="session")
def sliding_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another architecture: layers of two types, grouped heads, biases."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=640, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_window_layers=2, use_sliding_window=True, sliding_window=16, pad_token_id=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("qwen")
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model", ["nano-small", "nano-medium", "nano-large", "sliding"])
def test_all_layers_and_positions_equal_transformers(model: str, sliding_qwen: Path) -> None:
    folder = sliding_qwen if model == "sliding" else NANO_POOL / model
    expected = reference(folder, prompts())
    depth = n_layers(pass_of(folder))
    assert expected.shape[1] == depth + 1
    for deepest in range(depth + 1):
        sites = tuple(Site(layer=layer, position=position) for layer in range(deepest + 1) for position in POSITIONS)
        found = activations(folder, prompts(), *sites).reshape(len(prompts()), deepest + 1, len(POSITIONS), -1)
        np.testing.assert_allclose(found, expected[:, : deepest + 1], atol=1e-5, rtol=1e-5)
        # One layer alone takes another way out of the model.
        alone = activations(folder, prompts(), Site(layer=deepest, position=-1))
        np.testing.assert_allclose(alone[:, 0], expected[:, deepest, -1], atol=1e-5, rtol=1e-5)


def test_the_company_a_prompt_keeps_changes_nothing() -> None:
    site = Site(layer=3, position=-2)
    model = ProbeModel(pass_of(NANO_POOL / "nano-medium"), Reading((site,), (2,), next_token=True), "cpu")
    together = model.read(prompts(40))
    alone = [model.read([prompt]) for prompt in prompts(40)]

    def same(read: Callable[[Inputs], Any]) -> None:
        np.testing.assert_allclose(read(together), np.concatenate(list(map(read, alone))), atol=1e-5, rtol=1e-5)

    same(lambda inputs: inputs.activations[site])
    same(lambda inputs: inputs.next_token)
    same(lambda inputs: inputs.sequences[2].values)


def test_all_tokens_and_next_token_statistics_equal_transformers(sliding_qwen: Path) -> None:
    for folder in (NANO_POOL / "nano-medium", sliding_qwen):
        depth = n_layers(pass_of(folder))
        site = Site(layer=1, position=-1)
        inputs = ProbeModel(pass_of(folder), Reading((site,), (2, depth), next_token=True), "cpu").read(prompts())
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        assert inputs.next_token is not None
        for i, prompt in enumerate(prompts()):
            with torch.no_grad():
                output = model(torch.tensor([prompt]), output_hidden_states=True)
            p = output.logits[0, -1].double().softmax(-1)
            top = p.sort(descending=True).values[:5]
            expected = torch.cat([top, top.log(), -(p * p.log()).sum()[None]])
            np.testing.assert_allclose(inputs.next_token[i], expected, atol=1e-5, rtol=1e-4)
            for layer, sequences in inputs.sequences.items():
                rows = slice(sequences.starts[i], sequences.starts[i] + sequences.lengths[i])
                expected = output.hidden_states[layer][0]
                np.testing.assert_allclose(sequences.values[rows], expected, atol=1e-5, rtol=1e-5)
            assert inputs.prompt_tokens is not None
            assert inputs.prompt_tokens[i] == len(prompt)


SIZES: dict[str, Any] = {
    "vocab_size": 640, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        GraniteConfig(**SIZES, logits_scaling=4.0),
        CohereConfig(**SIZES, logit_scale=0.25),
        Gemma2Config(**SIZES, head_dim=16, final_logit_softcapping=2.0),
    ],
    ids=lambda config: config.model_type,
)
def test_next_token_statistics_are_of_the_architectures_own_logits(config: PreTrainedConfig, tmp_path: Path) -> None:
    """It may scale or cap them, here so much that without it every probability is far off."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    torch.nn.init.normal_(model.get_output_embeddings().weight)
    model.save_pretrained(tmp_path)
    reading = Reading((Site(layer=1, position=-1),), next_token=True)
    found = ProbeModel(pass_of(tmp_path), reading, "cpu").read(prompts())
    assert found.next_token is not None
    for prompt, statistics in zip(prompts(), found.next_token, strict=True):
        with torch.no_grad():
            p = model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
        top = p.sort(descending=True).values[:5]
        np.testing.assert_allclose(statistics[:5], top, rtol=1e-4)
        np.testing.assert_allclose(statistics[10], -(p * p.log()).sum(), rtol=1e-4)


def test_blocks_after_the_deepest_layer_are_not_built() -> None:
    sizes = [
        sum(
            parameter.numel()
            for parameter in ProbeModel(
                pass_of(NANO_POOL / "nano-medium"), Reading(sequence_layers=(layer,))
            )._model.parameters()
        )
        for layer in (1, 2, 4)
    ]
    block = sizes[1] - sizes[0]
    assert sizes[2] == sizes[0] + 3 * block


def test_scores_are_the_heads_of_the_activations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four probes, two passes, two sites in one pass, in the artifacts' order; each pass computed once for all of its
    probes."""
    artifacts = [
        artifact(tmp_path / "a", "nano-medium", layer=3, position=-1, seed=1),
        artifact(tmp_path / "b", "nano-large", layer=2, position=-2, seed=2),
        artifact(tmp_path / "c", "nano-medium", layer=1, position=-5, seed=3),
        artifact(tmp_path / "d", "nano-medium", layer=3, position=-1, seed=4),
    ]
    artifacts = [one if i == 2 else with_output_tokens(one, seed=i) for i, one in enumerate(artifacts)]
    engine = LocalEngine(artifacts, "cpu")
    forward, computed = ProbeModel._forward, []

    def counted(model: ProbeModel, prompts: Sequence[Ids]) -> Hidden:
        computed.append(model._name)
        return forward(model, prompts)

    monkeypatch.setattr(ProbeModel, "_forward", counted)
    first, second = prompts(seed=1), prompts(seed=2)
    scores = engine.score([Prompt(pair) for pair in zip(first, second, strict=True)])
    medium, large = (
        reference(NANO_POOL / model, ids) for model, ids in (("nano-medium", first), ("nano-large", second))
    )
    assert [Path(name).name for name in computed] == ["nano-medium", "nano-large"]
    read = [medium[:, 3, -1], large[:, 2, -2], medium[:, 1, 0], medium[:, 3, -1]]
    for column, (one, values) in enumerate(zip(artifacts, read, strict=True)):
        assert one.card.site is not None
        raw = one.probe.raw(Inputs(activations={one.card.site: values}))
        np.testing.assert_allclose(scores.success[:, column], calibration.apply(one.card.calibration, raw), atol=1e-5)
        head = one.card.output_tokens
        if head is None:
            assert np.isnan(scores.output_tokens[:, column]).all()
            continue
        tokens = head.smearing * np.exp(values @ one.beside[WEIGHT] + head.bias)
        np.testing.assert_allclose(scores.output_tokens[:, column], tokens.clip(head.low, head.high), rtol=1e-4)
    assert np.isnan(scores.activation_percentile).all()


def with_output_tokens(artifact: Artifact, seed: int) -> Artifact:
    """With a head at the probe's own site, of random weights."""
    rng = np.random.default_rng(seed)
    fields = {"smearing": 1 + seed / 10, "low": 3 + seed, "high": 500 - seed, "log_rmse": 1, "log_rmse_of_mean": 1}
    head = OutputTokens.model_validate({"site": artifact.card.site, "bias": rng.uniform(2, 4), **fields})
    weight = rng.normal(size=artifact.card.d_model).astype(np.float32) / 10
    card = artifact.card.model_copy(update={"output_tokens": head})
    return replace(artifact, card=card, beside={WEIGHT: weight})


def test_misfits_are_named(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="has layers 0 to 2; asked for"):
        ProbeModel(pass_of(NANO_POOL / "nano-small"), Reading((Site(layer=3, position=-1),)))
    large = artifact(tmp_path / "a", "nano-large").card.pass_
    made = card("nano-small").model_copy(update={"pass_": large})
    save_artifact(tmp_path / "b", made, LinearEoi(np.zeros(96, dtype=np.float32), Site(layer=1, position=-1)))
    with pytest.raises(ProbeError, match=r"reads 96 dimensions, its probe model .* has 160: train the probe anew"):
        LocalEngine([load_artifact(tmp_path / "b")])
    for device in ("foo", "cuda:99", "meta"):
        with pytest.raises(ProbeError, match=rf"device '{device}' is not here: choose auto, cpu"):
            ProbeModel(pass_of(NANO_POOL / "nano-small"), Reading(sequence_layers=(1,)), device)
    MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2)).save_pretrained(tmp_path / "c")
    with pytest.raises(ProbeError, match="type mamba cannot be cut after a layer"):
        ProbeModel(pass_of(tmp_path / "c"), Reading(sequence_layers=(1,)), "cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProbeError, match="cannot read the configuration"):
        ProbeModel(pass_of(tmp_path / "empty"), Reading(sequence_layers=(1,)))


def test_a_probe_models_own_code_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anybody asked on the terminal whether it may be."""
    shutil.copytree(NANO_POOL / "nano-small", tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    config |= {"model_type": "its-own", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    (tmp_path / "model/code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *asked: "y")
    with pytest.raises(ProbeError, match="wants its own code run, which is never done"):
        n_layers(pass_of(tmp_path / "model"))
    with pytest.raises(ProbeError, match="wants its own code run, which is never done"):
        ProbeModel(pass_of(tmp_path / "model"), Reading(sequence_layers=(1,)), "cpu")
    assert not (tmp_path / "ran").exists()


def test_micro_batches_hold_like_lengths_within_the_bound() -> None:
    lengths = np.random.default_rng(0).integers(1, 300, size=500).tolist()
    batches = micro_batches(lengths, max_tokens=1000)
    assert sorted(index for batch in batches for index in batch) == list(range(500))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 1000 for batch in batches)
    assert sum(len(batch) * max(lengths[i] for i in batch) for batch in batches) < 1.05 * sum(lengths)
    packed = micro_batches(lengths, max_tokens=1000, counts=lengths)
    assert all(sum(lengths[i] for i in batch) <= 1000 or len(batch) == 1 for batch in packed)
    assert sorted(i for batch in packed for i in batch) == list(range(len(lengths)))
    assert len(packed) < len(batches), "what is not padded counts as it is"
    reused = micro_batches([400] * 10, max_tokens=1000, counts=[100] * 10)
    assert [len(batch) for batch in reused] == [10], "nor does what is not computed"
    assert micro_batches([5000], max_tokens=1000) == [[0]]
    assert micro_batches([]) == []
