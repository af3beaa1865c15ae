"""How a probe on the Hub is named."""

import pytest

from probes.base import ProbeError
from probes.hub import Reference, parse


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("hf://ann/probes/large", Reference("ann/probes", "large", "main")),
        ("hf://ann/probes/v2/large@main", Reference("ann/probes", "v2/large", "main")),
        ("hf://ann/probes@v1.0", Reference("ann/probes", "", "v1.0")),
        ("hf://ann/probes/large@refs/pr/4", Reference("ann/probes", "large", "refs/pr/4")),
        (
            "hf://CoffeeGitta/pika-probes/Qwen2.5-7B--MATH--linear_eoi_probe--success_rate--k5-t0.7@" + "a" * 40,
            Reference("CoffeeGitta/pika-probes", "Qwen2.5-7B--MATH--linear_eoi_probe--success_rate--k5-t0.7", "a" * 40),
        ),
    ],
)
def test_parses(text: str, reference: Reference) -> None:
    assert parse(text) == reference
    assert parse(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    [
        "ann/probes/large",
        "hf://ann",
        "hf:///probes/large",
        "hf://ann/../large",
        "hf://ann/probes/../../etc",
        "hf://ann/probes//large",
        "hf://ann/probes/large/",
        "hf://ann/probes/.git",
        "hf://ann/probes/la rge",
        "hf://ann/probes/large?x=1",
        "hf://ann/probes/large\n",
        "hf://ann/probes/large@",
        "hf://ann/probes/large@../main",
        "hf://ann/probes/large@a@b",
        "hf://ann/probes/large@-f",
        "hf://datasets/ann/rollouts",
        "hf://an--n/probes",
    ],
)
def test_refuses_what_is_no_reference(text: str) -> None:
    with pytest.raises(ProbeError, match=r"hf://owner/repo/folder\[@revision\]"):
        parse(text)
