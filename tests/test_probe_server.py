"""What `pika probe-server` tells vLLM, and what it refuses."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from probes.artifact import Artifact, load_artifact, save_artifact
from probes.attn import Attn
from probes.base import ProbeError
from probes.card import Pass, Recipe, Site
from probes.engine import heads
from probes.engine.vllm_engine import VllmEngine
from probes.engine.vllm_routes import routes
from probes.engine.vllm_serving import overrides, probe_name, served_names
from probes.length import Length
from probes.tfidf import Tfidf
from server.commands.probe_server import main, vllm_options
from tests.support.examples import D_MODEL, card_of, examples
from tests.support.probes import NANO_POOL, artifact


def saved(folder: Path, kind: str) -> Artifact:
    """A probe that vLLM does not serve."""
    one, few = np.ones(1, dtype=np.float32), np.ones(D_MODEL, dtype=np.float32)
    probe = {
        "attn": lambda: Attn([few, few], one, Site(layer=1, position=None)),
        "length": lambda: Length(one, one),
        "tfidf": lambda: Tfidf.fit(examples(60, 0), examples(60, 1))[0].probe,
    }[kind]()
    save_artifact(folder, card_of(probe), probe)
    return load_artifact(folder)


def test_the_model_is_cut_at_the_deepest_layer(tmp_path: Path) -> None:
    shallow = [artifact(tmp_path / "a", "nano-medium", layer=1), artifact(tmp_path / "b", "nano-medium", layer=3)]
    options = vllm_options(shallow, "127.0.0.1", 8200)
    told = json.loads(options[options.index("--hf-overrides") + 1])
    assert told["architectures"] == ["ProbeLlamaForCausalLM"]
    assert (told["num_hidden_layers"], told["pika_layers"], told["pika_reads_final"]) == (3, [1, 3], False)
    assert told["pika_probes"] == [str(tmp_path / "a"), str(tmp_path / "b")]
    for option, value in (("--runner", "pooling"), ("--dtype", "float32"), ("--load-format", "safetensors")):
        assert options[options.index(option) + 1] == value
    assert options[options.index("--max-model-len") + 1] == "512"  # what the model takes, of the recipe's 1024
    large = load_artifact(NANO_POOL / "probes/nano-large")  # reads next-token statistics
    whole = overrides([*shallow, large])
    layers = sorted({1, 3, 5, *(site.layer for site in heads.sites(large))})
    assert (whole["num_hidden_layers"], whole["pika_layers"], whole["pika_reads_final"]) == (5, layers, True)
    assert overrides([artifact(tmp_path / "c", "nano-medium", layer=0)])["num_hidden_layers"] == 1


def test_layer_types_are_cut_too(tmp_path: Path) -> None:
    types = ["sliding_attention", "full_attention"] * 2
    config = {"architectures": ["GptOssForCausalLM"], "num_hidden_layers": 4, "hidden_size": 96}
    config["layer_types"] = types
    (tmp_path / "config.json").write_text(json.dumps(config))
    pass_ = Pass(probe_model=str(tmp_path), recipe=Recipe(chat_template_sha256=""))
    told = overrides([replace(artifact(tmp_path / "a", layer=2), pass_=pass_)])
    assert told["layer_types"] == types[:2]
    with pytest.raises(ProbeError, match="has layers 0 to 4; a probe reads layer 5"):
        overrides([replace(artifact(tmp_path / "b", layer=5), pass_=pass_)])
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["MambaForCausalLM"]}))
    with pytest.raises(ProbeError, match=r"is MambaForCausalLM, of which the plug-in .* cannot read .*own engine"):
        overrides([replace(artifact(tmp_path / "c", layer=1), pass_=pass_)])


def test_a_name_is_of_what_decides_the_scores(tmp_path: Path) -> None:
    one = artifact(tmp_path / "a", "nano-medium", seed=1)
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere/deeper")
    moved = load_artifact(tmp_path / "elsewhere/deeper", probe_models={"nano-medium": str(NANO_POOL / "nano-medium")})
    assert probe_name(one) == probe_name(moved)
    other = artifact(tmp_path / "b", "nano-medium", seed=2)
    halved = load_artifact(tmp_path / "a", dtype="bfloat16", allow=["dtype"])
    assert len({probe_name(one), probe_name(other), probe_name(halved)}) == 3
    assert served_names([one, other])[0] != served_names([other, one])[0]


def test_probes_are_found_on_the_servers_that_have_them(tmp_path: Path) -> None:
    """Three probes, two passes, two servers, one with a probe that nobody asks for."""
    medium = [artifact(tmp_path / f"m{i}", "nano-medium", seed=i) for i in range(3)]
    large = artifact(tmp_path / "l", "nano-large", layer=2)
    asked = [medium[2], large, medium[0]]
    names = [probe_name(artifact) for artifact in asked]
    serves = {"http://a": served_names(medium), "http://b": served_names([large])}
    [first, second], missing = routes(asked, names, serves)
    assert not missing
    assert (first.url, first.model, first.columns, first.passes) == ("http://a", serves["http://a"][0], 3, (0,))
    assert [(taken.probe, taken.column, taken.prompt) for taken in first.taken] == [(0, 2, 0), (2, 0, 0)]
    assert (second.url, second.passes, [taken.probe for taken in second.taken]) == ("http://b", (1,), [1])
    assert routes(asked, names, {"http://a": serves["http://a"]})[1] == [large]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{attn}"], "the attn probe of arm 'large' reads the activations of all prompt tokens, more than vLLM keeps"),
        (["{length}", "{tfidf}"], "none of these probes reads activations: the gateway computes them itself"),
        (["{small}", "{large}"], "one server runs one probe model, these probes read .*nano-small.*nano-large"),
        (["{small}", "--dtype", "bfloat16"], "was trained on activations in float32, not bfloat16; --allow-mismatch"),
        (
            ["{small}", "--model", str(NANO_POOL / "nano-large")],
            "the probe reads 96 dimensions, its probe model .* has 160",
        ),
        (["{small}", "--model", "./nowhere"], "no folder at"),
        (["{small}", "--", "--dtype=float16"], "leave --dtype out after --: `pika probe-server` sets it itself"),
        (["nowhere"], "no probe folder at nowhere"),
    ],
)
def test_what_cannot_be_served_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {
        kind: str(saved(tmp_path / kind, kind).folder)
        for kind in ("attn", "length", "tfidf")
        if f"{{{kind}}}" in arguments
    }
    made |= {name: str(artifact(tmp_path / name, f"nano-{name}").folder) for name in ("small", "large")}
    assert main(["--probes", *(argument.format(**made) for argument in arguments)]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said


def test_the_gateways_engine_refuses_the_same(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="let the gateway's own engine read it"):
        VllmEngine([saved(tmp_path, "attn")], ["http://127.0.0.1:1"])
