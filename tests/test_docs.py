"""What the pages say can be done: links lead somewhere, commands are accepted, configurations load, Python compiles."""

import argparse
import json
import re
import shlex
import textwrap
import tomllib
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from pydantic import TypeAdapter
from starlette.routing import Route

from offline import probes_cli
from offline.bench import cli as bench_cli
from server.__main__ import COMMANDS, main
from server.app import create_app
from server.config import Settings
from server.sections.pool import Model
from tests.support.gateway import constant_pool

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "docker", "offline", "probes", "routing_policies", "server", "tests")
PAGES = [ROOT / "README.md", *(file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.md")))]
OTHERS = {"rules"}
"""First keys of YAML that is not ours: prometheus-adapter's rules."""
SUBCOMMANDS = {
    "probes": set(probes_cli.COMMANDS),
    "bench": set(bench_cli.COMMANDS),
    "data": {"push", "pull", "convert"},
}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


class Parsed(BaseException):
    """A command line is right; nothing is done."""


def fences(page: Path, language: str) -> list[str]:
    """Blocks between ``` of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """Without blocks and inline code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`]*`", "", re.sub(r"^    .*$", "", text, flags=re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def commands(page: Path) -> list[str]:
    """Lines that begin with `pika`, those that end with a backslash joined."""
    text = page.read_text().replace("\\\n", " ")
    return re.findall(r"^(?: {4})?(?:\.venv/bin/)?(pika [a-z].*)$", text, flags=re.MULTILINE)


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        path, _, anchor = link.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page}: {link}"
        assert target.is_relative_to(ROOT), f"{page}: {link}"
        assert not anchor or anchor in anchors(target), f"{page}: {link}; anchors there: {sorted(anchors(target))}"


@pages
def test_commands_are_accepted(page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> None:
        parse(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    for line in commands(page):
        try:
            main(shlex.split(line, comments=True)[1:])
        except Parsed:
            continue
        except SystemExit:
            pass
        pytest.fail(f"{page}: {line}\n{capsys.readouterr().err}")


@pages
def test_commands_that_are_spoken_of_exist(page: Path) -> None:
    for name, rest in re.findall(r"`pika ([a-z-]+)([^`]*)`", page.read_text()):
        assert name in COMMANDS, f"{page}: pika {name}"
        following = (rest.split() or [""])[0]
        known = SUBCOMMANDS.get(name)
        if known is not None and re.fullmatch("[a-z][a-z-]*", following):
            assert following in known, f"{page}: pika {name} {following}"


@pages
def test_what_containers_are_started_with_exists(page: Path) -> None:
    """Profiles of the compose file, stages and arguments of the Dockerfile, the files themselves."""
    text = page.read_text()
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    services = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"].values()
    profiles = {profile for service in services for profile in service.get("profiles", ())}
    stages = set(re.findall(r"^FROM .* AS (\S+)$", dockerfile, flags=re.MULTILINE))
    arguments = set(re.findall(r"^ARG (\w+)", dockerfile, flags=re.MULTILINE))
    assert set(re.findall(r"--profile[ =]([\w-]+)", text)) <= profiles, page
    # `pika tune` has --target NAME=VALUE
    assert set(re.findall(r"--target[ =]([\w-]+)(?![\w=-])", text)) <= stages, page
    assert set(re.findall(r"--build-arg[ =](\w+)", text)) <= arguments, page
    for file in re.findall(r"(?:docker (?:compose|build) -f|helm (?:install|upgrade|template) \S+) ([^\s`]+)", text):
        assert (ROOT / file).exists(), f"{page}: {file}"


@pages
def test_values_that_the_chart_is_given_are_in_its_schema(page: Path) -> None:
    schema = json.loads((ROOT / "docker/helm/pika-router/values.schema.json").read_text())
    for key in re.findall(r"--set(?:-file|-string|-json)?[ =]['\"]?([\w.]+)", page.read_text()):
        part = schema
        for name in key.split("."):
            assert name in part.get("properties", {name: {}}), f"{page}: {key}"
            part = part.get("properties", {}).get(name, {})


@pages
def test_curl_asks_for_what_there_is(page: Path) -> None:
    app = create_app(constant_pool({"small": ["http://127.0.0.1:1/v1"]}))
    paths = {route.path for route in app.routes if isinstance(route, Route)}
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"^(?: {4})?(curl .*)$", text, flags=re.MULTILINE):
        words = shlex.split(line, comments=True)
        [url] = [word for word in words if word.startswith("http://")]
        assert urlsplit(url).path in paths, f"{page}: {line}"
        for option, value in pairwise(words):
            if option in ("-d", "--data"):
                json.loads(value)


@pages
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = re.findall(r"(?:`|^    )make ([a-z-]+)", page.read_text(), flags=re.MULTILINE)
    assert set(named) <= targets, page


@pages
def test_configurations_are_accepted(page: Path) -> None:
    for block in fences(page, "yaml"):
        data = yaml.safe_load(textwrap.dedent(block))
        if {"models", "arms", "policy"} <= set(data):
            Settings.model_validate(data)
            continue
        for key, value in data.items():
            if key not in OTHERS:
                section_of(key).validate_python(value)


def section_of(key: str) -> TypeAdapter[Any]:
    """Of a part of the file that stands alone: a section, or a key of a model."""
    for cls in (Settings, Model):
        if key in cls.model_fields:
            return TypeAdapter(cls.model_fields[key].rebuild_annotation())
    pytest.fail(f"no section is called {key!r}; YAML of others goes into OTHERS")


@pages
def test_python_compiles(page: Path) -> None:
    for block in fences(page, "python"):
        compile(block, str(page), "exec")


def test_every_page_of_docs_is_on_the_first_page() -> None:
    linked = set(re.findall(r"\]\((docs/[a-z]+\.md)\)", (ROOT / "README.md").read_text()))
    assert linked == {f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")}


def test_what_every_alert_asks_for_is_said() -> None:
    alerts = re.findall(r"- alert: (\w+)", (ROOT / "docker" / "prometheus" / "alerts.yml").read_text())
    assert [alert for alert in alerts if f"`{alert}`" not in (ROOT / "docs" / "operating.md").read_text()] == []


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert {one["url"].rpartition("/")[2] for one in citation["references"]} == {"2602.09924", "2510.18147"}
    for one in (citation, *citation["references"]):
        assert one["title"]
        assert one["authors"]
