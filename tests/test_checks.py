"""A probe is refused with what it was not trained with, unless the operator overrides that one check."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from probes.artifact import load_artifact
from probes.base import ProbeError
from probes.card import Pass, Recipe
from probes.fingerprint import fingerprint, fingerprint_of
from probes.source import model_file
from tests.support.hub import running
from tests.support.probes import NANO_POOL, artifact


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the probe model that a test may spoil."""
    return Path(shutil.copytree(NANO_POOL / "nano-small", tmp_path / "model"))


def probe_of(model: Path, folder: Path, **changes: Any) -> Path:
    """A probe that was trained with the model."""
    artifact(folder)
    config = json.loads((folder / "config.json").read_text())
    config["pass"]["probe_model"] = str(model)
    config["probe_model_fingerprint"] = fingerprint(model)
    config |= changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def spoil_template(model: Path) -> None:
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "chat_template.jinja").write_text(config.get("chat_template", "") + "{# changed #}")


def spoil_tokenizer(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:20]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))


def spoil_weights(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, model / "model.safetensors")


SPOILT = {
    "chat-template": (spoil_template, r"chat template of .* restore the template"),
    "tokenizer": (spoil_tokenizer, r"first difference at token \d+\): restore tokenizer.json"),
    "probe-model": (spoil_weights, r"configuration or weights in .* are not those .* train the probe anew"),
}


@pytest.mark.parametrize("check", SPOILT)
def test_each_check_names_its_mismatch_and_can_be_overridden(check: str, model: Path, tmp_path: Path) -> None:
    folder = probe_of(model, tmp_path / "probe")
    assert load_artifact(folder).mismatches == ()
    spoil, message = SPOILT[check]
    spoil(model)
    with pytest.raises(ProbeError, match=rf"{message}.*; --allow-mismatch {check} goes on"):
        load_artifact(folder)
    others = [name for name in SPOILT if name != check]
    with pytest.raises(ProbeError, match=f"--allow-mismatch {check}"):
        load_artifact(folder, allow=others)
    assert load_artifact(folder, allow=[check]).mismatches == (check,)


def test_another_dtype_than_the_probes_must_be_allowed(model: Path, tmp_path: Path) -> None:
    folder = probe_of(model, tmp_path / "probe")
    with pytest.raises(ProbeError, match=r"trained on activations in float32, not bfloat16.*--allow-mismatch dtype"):
        load_artifact(folder, dtype="bfloat16")
    served = load_artifact(folder, dtype="bfloat16", allow=["dtype"])
    assert served.mismatches == ("dtype",)
    assert served.pass_ is not None
    assert served.pass_.dtype == "bfloat16"


def test_another_copy_of_the_probe_model_may_stand_in_for_it(model: Path, tmp_path: Path) -> None:
    folder = probe_of(model, tmp_path / "probe")
    config = json.loads((folder / "config.json").read_text())
    config["pass"] |= {"probe_model": "owner/nano-small", "revision": "0" * 40}
    (folder / "config.json").write_text(json.dumps(config))
    served = load_artifact(folder, probe_models={"owner/nano-small": str(model)})
    assert served.mismatches == ()
    assert served.pass_ is not None
    assert served.pass_.probe_model == str(model)
    other = str(NANO_POOL / "nano-medium")
    with pytest.raises(ProbeError, match=r"weights in .*nano-medium are not those of owner/nano-small"):
        load_artifact(folder, probe_models={"owner/nano-small": other})


@pytest.mark.parametrize("instead", ["/" + "x" * 5000, "~nosuchuser/x"], ids=["too long", "of nobody"])
def test_what_can_be_no_path_in_the_place_of_a_model_is_named(instead: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"is no path \(\w+\); give a folder or a Hub id") as caught:
        load_artifact(probe_of(model, tmp_path / "probe"), probe_models={str(model): instead})
    assert len(str(caught.value)) < 500


def test_an_unknown_check_cannot_be_overridden(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="there is no check 'colour' to override: probe-model, revision"):
        load_artifact(probe_of(model, tmp_path / "probe"), allow=["colour"])


def test_a_fingerprint_holds_across_shards_and_changes_with_any_tensor(model: Path) -> None:
    whole = fingerprint(model)
    tensors = load_file(model / "model.safetensors")
    names = sorted(tensors)
    (model / "model.safetensors").unlink()
    save_file({name: tensors[name] for name in names[::2]}, model / "a.safetensors")
    save_file({name: tensors[name] for name in names[1::2]}, model / "b.safetensors")
    assert fingerprint(model) == whole
    for name in names:
        changed = {other: tensor.clone() for other, tensor in tensors.items()}
        changed[name].view(-1)[0] += 1
        (model / "b.safetensors").unlink(missing_ok=True)
        save_file(changed, model / "a.safetensors")
        assert fingerprint(model) != whole, name


def test_a_fingerprint_holds_for_the_configuration_too(model: Path) -> None:
    whole = fingerprint(model)
    before = json.loads((model / "config.json").read_text())
    for key, value, matters in (
        ("rms_norm_eps", 1.0, True),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e6}, True),
        ("rope_parameters", before["rope_parameters"] | {"dtype": "float16"}, False),
        ("sliding_window", 4, True),
        ("_name_or_path", "elsewhere", False),
        ("transformers_version", "9", False),
        ("torch_dtype", "float32", False),
        ("architectures", [], False),
    ):
        (model / "config.json").write_text(json.dumps(before | {key: value}, indent=3))
        assert (fingerprint(model) != whole) == matters, key
    (model / "config.json").write_text("[" * 100_000)
    with pytest.raises(ProbeError, match=r"config.json is not valid JSON"):
        fingerprint(model)


def test_weights_in_their_makers_own_form_are_not_read(model: Path) -> None:
    whole = fingerprint(model)
    tensors = load_file(model / "model.safetensors")
    save_file(tensors, model / "consolidated.safetensors")
    assert fingerprint(model) == whole
    (model / "model.safetensors").rename(model / "one.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "one.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert fingerprint(model) == whole
    (model / "one.safetensors").unlink()
    with pytest.raises(ProbeError, match=r"one.safetensors is not a whole safetensors file"):
        fingerprint(model)


def test_a_model_from_the_hub_has_the_fingerprint_of_its_copies(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running() as hub:
        hub.use(monkeypatch, tmp_path / "home")
        files = {file.name: file.read_bytes() for file in model.iterdir()}
        commit = hub.repository("owner/nano").commit(files)
        pass_ = Pass(probe_model="owner/nano", revision=commit, recipe=Recipe(chat_template_sha256=None))
        assert fingerprint_of(pass_) is None, "only the configuration is in the cache"
        model_file(pass_, "model.safetensors")
        assert fingerprint_of(pass_) == fingerprint(model)


def test_a_folder_in_the_place_of_a_model_without_fingerprint_is_a_warning(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = probe_of(model, tmp_path / "probe", probe_model_fingerprint=None)
    config = json.loads((folder / "config.json").read_text())
    config["pass"] |= {"probe_model": "owner/nano-small", "revision": "0" * 40}
    (folder / "config.json").write_text(json.dumps(config))
    caplog.clear()
    assert load_artifact(folder, probe_models={"owner/nano-small": str(model)}).mismatches == ()
    assert f"no fingerprint of owner/nano-small: that {model} is it cannot be verified" in caplog.text
    known = probe_of(model, tmp_path / "known")
    caplog.clear()
    load_artifact(known)
    assert not caplog.messages


@pytest.mark.parametrize(
    "content", [b"", b"\x05", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b'\x09\0\0\0\0\0\0\0{"a": {}}']
)
def test_torn_weights_are_named(content: bytes, model: Path) -> None:
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(ProbeError, match="not a whole safetensors file"):
        fingerprint(model)
