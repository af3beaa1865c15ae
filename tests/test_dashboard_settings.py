"""The dashboard's page in a browser, as the configuration makes it: ledgers, keys, and none of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.dashboard import NEEDS_CHROMIUM, RECORDED, ROUTED, dashboard, fill, opened
from tests.support.keys import new_key, revoke

if TYPE_CHECKING:
    from playwright.sync_api import Playwright

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def playwright() -> "Iterator[Playwright]":
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright


def test_every_figure_is_there_with_either_database(playwright: "Playwright", ledger_url: str, tmp_path: Path) -> None:
    with dashboard(tmp_path, False, ledger={"url": ledger_url}) as (gateway, _):
        fill(gateway, ledger_url).close()
        with opened(playwright, str(gateway.client.base_url).rstrip("/")) as page:
            page.wait_for_selector("#decisions tbody tr")
            for chart in ("mix", "frontier", "reliability", "drift"):
                page.wait_for_selector(f"#{chart} canvas")
            assert f"{RECORDED + ROUTED:,}" in page.locator("#tiles .tile").nth(2).inner_text()
            page.wait_for_selector("#replay .whatif")
            page.locator("#lambda").press("Home")
            page.get_by_text("nano-large 100%", exact=True).wait_for()
            page.locator("#decisions tbody tr", has_text="audit").first.click()
            page.wait_for_selector("#detail-body .facts")
            assert page.locator("#detail-body tbody tr").count() == 3
            page.keyboard.press("Escape")
            page.get_by_role("button", name="Older").click()
            page.get_by_text("An earlier page").wait_for()
            assert not page.locator("#fault").is_visible()


def test_the_playground_decides_for_the_key_that_one_chooses(playwright: "Playwright", tmp_path: Path) -> None:
    """The operator has no user's key, and needs none."""
    keys = tmp_path / "keys.yaml"
    new_key(keys, "anybody")
    new_key(keys, "small-only", arms=["nano-small"])
    new_key(keys, "frugal", routing={"policy": "min_cost"}, arms=["nano-medium", "nano-large"])
    with dashboard(tmp_path, False, keys={"file": str(keys)}) as (gateway, _):
        assert gateway.client.post("/route", json={}).status_code == 401
        with opened(playwright, str(gateway.client.base_url).rstrip("/")) as page:
            choice = page.get_by_label("For the key")
            choice.wait_for()
            assert choice.locator("option").all_inner_texts() == ["without limits", "anybody", "frugal", "small-only"]
            page.get_by_label("Prompt", exact=True).fill("Begin with 2. Add 1.")
            page.wait_for_selector("#decision .verdict")
            for name, arm in (("small-only", "nano-small"), ("frugal", "nano-medium")):
                choice.select_option(name)
                page.locator("#decision .verdict", has_text=f"Goes to {arm}").wait_for()
            assert "min_cost" in page.locator("#decision .verdict").inner_text()
            revoke(keys, "frugal")
            page.locator("#decision .verdict", has_text="Goes to nano-large by utility").wait_for()
            assert choice.locator("option").all_inner_texts() == ["without limits", "anybody", "small-only"]
            assert choice.input_value() == ""


def test_without_a_ledger_it_shows_what_it_can_and_what_to_add(playwright: "Playwright", tmp_path: Path) -> None:
    with dashboard(tmp_path, False) as (gateway, _):
        body = {"model": "auto", "messages": [{"role": "user", "content": "Begin with 2. Add 1."}]}
        for _ in range(3):
            assert gateway.client.post("/v1/chat/completions", json=body).status_code == 200
        with opened(playwright, str(gateway.client.base_url).rstrip("/")) as page:
            page.get_by_text("ledger: {}").wait_for()
            assert "\n3\n" in page.locator("#tiles .tile").nth(2).inner_text()
            page.locator("#replicas tbody tr").nth(2).wait_for()
            assert not page.locator("#h-mix").is_visible()
            page.get_by_label("Prompt", exact=True).fill("Begin with 2. Add 1.")
            page.wait_for_selector("#decision .verdict")


def test_the_admin_key_is_asked_for_and_stays_in_the_tab(playwright: "Playwright", tmp_path: Path) -> None:
    key = "correct-horse-battery-staple"
    environment = {"ADMIN": key}
    unauthorised = ("401",)
    with dashboard(tmp_path, False, environment, admin={"key_env": "ADMIN"}) as (gateway, _):
        url = str(gateway.client.base_url).rstrip("/")
        assert key not in gateway.client.get("/dashboard").text
        with opened(playwright, url, may_say=unauthorised) as page:
            field = page.get_by_label("Key", exact=True)
            field.fill("wrong")
            field.press("Enter")
            page.get_by_text("this needs the admin key").wait_for()
            assert not page.locator("main").is_visible()
            field.fill(key)
            field.press("Enter")
            page.locator("#replicas tbody tr").nth(2).wait_for()
            page.get_by_label("Prompt", exact=True).fill("Begin with 2. Add 1.")
            page.wait_for_selector("#decision .verdict")
            assert key not in page.url
            assert key not in page.content()
            assert page.evaluate("localStorage.length") == 0
            page.reload()
            page.locator("#replicas tbody tr").nth(2).wait_for()
        with opened(playwright, url, may_say=unauthorised) as page:  # another tab knows nothing of it
            page.get_by_label("Key", exact=True).wait_for()
