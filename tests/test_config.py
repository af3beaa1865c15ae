"""A wrong configuration gets one error that names the key and the fix."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from server.config import ConfigError, load, prefill_usd_per_token, read_yaml


def pool(**changes: Any) -> dict[str, Any]:
    """The smallest valid file, with top-level keys replaced."""
    return {
        "models": {
            "small": {
                "model": "owner/small",
                "max_context_tokens": 512,
                "usd_per_million_tokens": {"input": 0.1, "output": 0.4},
                "replicas": [{"url": "http://127.0.0.1:8101/v1"}],
            }
        },
        "arms": {
            "small": {"model": "small", "success_probability": 0.5, "mean_tokens": {"input": 10, "output": 20}},
        },
        "policy": {"name": "utility", "lambda": 0.4},
        **changes,
    }


def write(folder: Path, data: Any) -> Path:
    file = folder / "pool.yaml"
    file.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return file


def arm(**fields: Any) -> dict[str, Any]:
    return {"small": {**pool()["arms"]["small"], **fields}}


def model(**fields: Any) -> dict[str, Any]:
    return {"small": {**pool()["models"]["small"], **fields}}


def test_defaults_and_words(tmp_path: Path) -> None:
    settings = load(write(tmp_path, pool()))
    assert settings.server.host == "127.0.0.1"
    assert settings.policy.knobs() == {"lambda": 0.4}
    assert settings.limits.in_flight == 1000
    assert settings.resolve("probes/a") == tmp_path / "probes" / "a"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"polcy": {}}, "unknown key 'polcy': did you mean 'policy'?"),
        ({"policy": {"name": "utility", "lamda": 1}}, "did you mean 'lambda'?"),
        ({"policy": {"name": "utility", "lambda": -1}}, "policy.lambda"),
        ({"policy": {}}, "policy needs a name"),
        ({"arms": arm(success_probability=None)}, "either probe (a folder or hf://...) or success_probability"),
        ({"arms": arm(mean_tokens=None)}, "needs mean_tokens"),
        ({"arms": arm(model="smal")}, "did you mean 'small'?"),
        ({"arms": arm(request={"messages": []})}, "'messages' is set by the gateway or the client"),
        ({"arms": {"auto-1": pool()["arms"]["small"]}}, "names that begin with 'auto' are kept for routing"),
        ({"arms": {"a b": pool()["arms"]["small"]}}, "names have up to 64 letters"),
        ({"arms": {"owner/small": pool()["arms"]["small"]}}, "names have up to 64 letters"),
        ({"models": {"a b": model()["small"]}}, "names have up to 200 letters"),
        ({"models": model(replicas=[{}])}, "either url (it runs already) or launch"),
        ({"models": model(replicas=[{"url": "localhost:1"}])}, "is no http(s) URL"),
        ({"models": model(replicas=[{"url": "http://h:abc/v1"}])}, "models.small.replicas.0"),
        ({"models": model(replicas=[{"url": "http://h:1"}])}, "which ends in /v1"),
        ({"models": model(replicas=[{"url": "http://me:secret@h:1/v1"}])}, "leave user and password out"),
        ({"models": model(replicas=[{"launch": {"args": ["--api-key=abc"]}}])}, "set VLLM_API_KEY in the environment"),
        ({"models": model(max_context_tokens=0)}, "models.small.max_context_tokens"),
        ({"models": model(usd_per_million_tokens={"input": -1, "output": 1})}, "usd_per_million_tokens.input"),
        ({"engine": {"when_unavailable": "nobody"}}, "'nobody' is no arm"),
        ({"engine": {"kind": "magic"}}, "engine.kind"),
        ({"engine": {"kind": "vllm"}}, "kind: vllm needs a url: http://HOST:PORT"),
        ({"engine": {"kind": "vllm", "url": ["http://h:1", "tcp://h:1"]}}, "is no http(s) URL"),
        ({"engine": {"kind": "remote"}}, "kind: remote needs one url: tcp://HOST:PORT or unix:///PATH"),
        ({"engine": {"kind": "remote", "url": "http://h:1"}}, "is no address of an engine"),
        ({"engine": {"url": "tcp://h:1"}}, "say kind: remote, or kind: vllm"),
        ({"server": {"workers": 0}}, "server.workers"),
        ({"out_of_distribution": {"action": {"arm": "nobody"}}}, "out_of_distribution.action: 'nobody' is no arm"),
        ({"out_of_distribution": {"percentile": 101}}, "out_of_distribution.percentile"),
        ({"out_of_distribution": {"action": "drop"}}, "out_of_distribution.action"),
        ({"engine": {"allow_mismatch": ["colour"]}}, "engine.allow_mismatch.0"),
        ({"allow_request": ["lambada"]}, "allow_request.0"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, pool(**changes)))
    assert message in str(caught.value)
    assert "pool.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("x: 2024-99-99", "not valid YAML: month must be in 1..12"),
        ("x: !!timestamp soon", "not valid YAML"),
        ("[" * 5000, "not valid YAML: maximum recursion"),
        ("- 1", "must be a mapping"),
        ("", "mapping"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, text))


def test_what_is_left_out_is_named_with_the_page_that_explains_it(tmp_path: Path) -> None:
    without = {key: value for key, value in pool().items() if key != "policy"}
    with pytest.raises(ConfigError, match=r"policy: is missing; docs/configuration\.md"):
        load(write(tmp_path, without))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "none.yaml")


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    file = write(tmp_path, pool())
    file.write_text(file.read_text() + "\npolicy: {name: utility, lambda: 0}\n")
    with pytest.raises(ConfigError, match=r"the key 'policy' stands twice, first in line \d+"):
        load(file)
    file.write_text("a: &a {x: 1}\nb: {<<: *a, <<: {y: 2}, x: 3}\n")  # what is merged may be set anew
    assert read_yaml(file, "")["b"] == {"x": 3, "y": 2}


def test_model_references(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    settings = load(write(tmp_path, pool()))
    assert settings.model_source("weights") == str((tmp_path / "weights").resolve())
    assert settings.model_source("owner/name") == "owner/name"
    with pytest.raises(ConfigError, match="no folder at"):
        settings.model_source("./missing")


def test_the_documented_pool_is_a_valid_configuration() -> None:
    settings = load(Path(__file__).parents[1] / "docs" / "pool.yaml")
    assert list(settings.arms) == ["qwen-1.5b", "qwen-7b", "oss-low", "oss-medium", "oss-high"]


def test_pools_of_which_only_the_answers_are_known(tmp_path: Path) -> None:
    """As `pika data convert` writes them: nothing serves their models, whose names lead nowhere."""
    known = model(model="6b_verification", replicas=[])
    known["other"] = {**known["small"], "model": "owner/other"}
    settings = load(write(tmp_path, pool(models=known)))
    assert list(settings.unserved) == ["small"]  # no arm asks the other
    assert prefill_usd_per_token(settings, "owner/other") == pytest.approx(1e-7)
    assert prefill_usd_per_token(settings, "owner/third") is None
    served = load(write(tmp_path, pool(models=model(model="6b_verification"))))
    with pytest.raises(ConfigError, match="no folder at"):
        prefill_usd_per_token(served, "owner/third")
