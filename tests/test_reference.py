"""The pages of docs/ that are written from the code are what the code says; what it lacks for them is an error."""

from pathlib import Path

import pytest

from server.reference import configuration, metrics
from server.reference.__main__ import COMMAND, DOCS, main, pages


@pytest.mark.parametrize("file", pages(), ids=lambda file: file.name)
def test_the_committed_page_is_what_the_code_says(file: Path) -> None:
    assert file.read_text(encoding="utf-8") == pages()[file], f"run {COMMAND}"


def test_the_command_writes_and_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "pool.yaml").write_text((DOCS / "pool.yaml").read_text())
    monkeypatch.setattr("server.reference.__main__.DOCS", tmp_path / "docs")
    assert main(["--check"]) == 1
    assert f"docs/metrics.md is out of date: run {COMMAND}" in capsys.readouterr().err
    assert main([]) == 0
    assert main(["--check"]) == 0
    assert (tmp_path / "docs" / "configuration.md").read_text() == (DOCS / "configuration.md").read_text()


def test_every_key_is_told_with_its_default_and_bounds() -> None:
    page = pages()[DOCS / "configuration.md"]
    assert "| `deadline_ms` | number > 0, ≤ 600000 | `1000` | A prompt not scored by then" in page
    assert "| `NAME.replicas[].launch.gpus` | list of whole number |" in page
    assert "| `action` | `none`, `flag` or mapping | `flag` |" in page


def test_a_section_without_an_example_is_named(tmp_path: Path) -> None:
    example = tmp_path / "pool.yaml"
    example.write_text("server: {port: 8000}\n")
    with pytest.raises(configuration.UndocumentedError, match=r"pool\.yaml has no example of models"):
        configuration.page(example)


def test_a_label_that_nobody_explained_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(metrics.LABELS, "flag")
    with pytest.raises(metrics.UndocumentedError, match="pika_flags_total: say in LABELS"):
        metrics.page()


def test_labels_of_series_that_nothing_counted_yet_are_told() -> None:
    assert "| `pika_canary_requests_total` | `group`, `code` | counter |" in metrics.page()
