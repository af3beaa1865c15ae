"""The dashboard in a browser: what somebody sees, hears and types, before a live gateway with real probes."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sqlalchemy import func, select

from server.ledger.database import Database
from server.ledger.tables import decisions, outcomes, pools
from tests.support.dashboard import NEEDS_CHROMIUM, RECORDED, ROUTED, dashboard, fill, opened
from tests.support.hostile import HOSTILE, hostile, nothing_ran, spoil
from tests.support.serve import Served
from tests.support.upstream import Upstream
from tests.test_dashboard import DATA, OF_LEDGER

if TYPE_CHECKING:
    from playwright.sync_api import Page, Playwright, Route

pytestmark = NEEDS_CHROMIUM
CHARTS = ["mix", "frontier", "reliability", "drift"]


@pytest.fixture(scope="module")
def playwright() -> "Iterator[Playwright]":
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Upstream, Database]]:
    folder = tmp_path_factory.mktemp("dashboard")
    ledger = f"sqlite:///{folder}/ledger.sqlite"
    with dashboard(folder, True, ledger={"url": ledger}) as (gateway, upstream):
        yield gateway, upstream, fill(gateway, ledger)


@pytest.fixture(scope="module")
def url(live: tuple[Served, Upstream, Database]) -> str:
    return str(live[0].client.base_url).rstrip("/")


def shown(page: "Page") -> None:
    """Wait for all figures."""
    page.wait_for_selector("body[data-loaded]")
    page.wait_for_selector("#decisions tbody tr")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_everything_fits_and_has_words(playwright: "Playwright", url: str, width: int, scheme: str) -> None:
    with opened(playwright, url, width, scheme) as page:
        shown(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("header, main, section[aria-labelledby], table caption").count() > 8
        for chart in CHARTS:
            picture = page.locator(f"#{chart} [role=img]")
            assert len(picture.get_attribute("aria-label") or "") > 20
            box = picture.locator("canvas").bounding_box()
            assert box is not None
            assert box["width"] <= width
            page.locator(f"#{chart} summary").click()
            page.locator(f"#{chart} details table tbody tr").first.wait_for()
        tables = page.locator(":is(#arms, #replicas, #ways, #decisions) .scroll")
        assert tables.count() == 4
        assert tables.evaluate_all("all => all.every(one => one.scrollWidth <= one.clientWidth + 1)")
        page.locator("#decisions tbody tr").first.click()
        page.wait_for_selector("#detail-body .facts")
        assert page.locator("#detail").evaluate("one => one.scrollWidth <= one.clientWidth")
        box = page.locator("#detail").bounding_box()
        assert box is not None
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width
        page.get_by_label("Close").click()
        page.get_by_label("Prompt", exact=True).fill("Begin with 5. Add 8.")
        page.wait_for_selector("#decision tr.chosen")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(244, 245, 248)") == (scheme == "light")


def test_the_tiles_say_what_the_ledger_holds(
    playwright: "Playwright", url: str, live: tuple[Served, Upstream, Database]
) -> None:
    with live[2].read() as connection:
        spent = connection.scalar(select(func.sum(decisions.c.cost_usd + decisions.c.probe_usd)))
        answers = connection.execute(select(decisions.c.arm, decisions.c.input_tokens, decisions.c.cost_usd)).all()
        pool = connection.execute(select(pools)).one()
        right, count = connection.execute(select(func.avg(outcomes.c.correct), func.count(outcomes.c.at))).one()
    assert spent is not None
    large = pool.arms.index("nano-large")
    (input_usd, output_usd), (_, output_tokens) = pool.prices[large], pool.mean_tokens[large]
    always = sum(
        cost if arm == large else (tokens * input_usd + output_tokens * output_usd) / 1e6
        for arm, tokens, cost in answers
    )
    with opened(playwright, url) as page:
        shown(page)
        saved, accuracy, requests, cost = page.locator("#tiles .tile").all_inner_texts()
        assert f"{RECORDED + ROUTED:,}" in requests
        assert "no errors" in requests
        assert f"${spent:.3g}"[:6] in cost
        assert f"observed {100 * right:.1f}%" in accuracy
        assert f"{count:,} outcomes" in accuracy
        assert f"${always - spent:.3g}" in saved
        assert f"{100 * (1 - spent / always):.0f}%" in saved
        assert "against always nano-large" in saved


def test_the_slider_replays_another_lambda(
    playwright: "Playwright", url: str, live: tuple[Served, Upstream, Database]
) -> None:
    """At lambda 0 the most probable arm answers each request: its mean probability is what the page expects."""
    with live[2].read() as connection:
        blobs = list(connection.scalars(select(decisions.c.success)))
    best = np.frombuffer(b"".join(blobs), "<f4").reshape(-1, 3).max(axis=1).mean()
    with opened(playwright, url) as page:
        shown(page)
        slider = page.locator("#lambda")
        assert page.locator("#lambda-value").inner_text() == "0.22"  # near the configured .227
        before = page.locator("#replay").inner_text()
        slider.press("Home")
        page.wait_for_function("before => document.querySelector('#replay').innerText !== before", arg=before)
        assert f"{100 * best:.1f}%" in page.locator("#replay").inner_text()
        assert "expected" in page.locator("#announce").inner_text()
        slider.press("End")
        page.get_by_text("nano-small 100%", exact=True).wait_for()


def test_the_keyboard_reaches_everything(playwright: "Playwright", url: str) -> None:
    with opened(playwright, url) as page:
        shown(page)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowRight")
        page.wait_for_selector("body[data-loaded='24h']")
        assert page.locator("#announce").inner_text() == "Showing the last 24 hours"
        when = page.locator("#decisions tbody tr:first-child button")
        when.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("#detail[open] .facts")
        page.keyboard.press("Escape")
        assert page.locator("#detail[open]").count() == 0
        assert when.evaluate("button => button === document.activeElement")


def test_a_decision_is_shown_with_all_arms_and_the_reason(playwright: "Playwright", url: str) -> None:
    with opened(playwright, url) as page:
        shown(page)
        row = page.locator("#decisions tbody tr", has_text="audit").first
        assert row.locator(".chip").all_inner_texts() == ["audit", "policy-changed", "truncated"]
        row.click()
        page.wait_for_selector("#detail-body .facts")
        detail = page.locator("#detail-body")
        assert detail.locator("tbody tr").count() == 3
        assert "Drawn at random for the audit" in detail.locator(".why").inner_text()
        assert "chosen" in detail.locator("tr.chosen").inner_text()
        assert detail.get_by_text("Flags", exact=True).locator("+ dd").inner_text() == "policy-changed, truncated"


def test_older_decisions_are_a_page_away(playwright: "Playwright", url: str) -> None:
    with opened(playwright, url) as page:
        shown(page)
        first = page.locator("#decisions tbody").inner_text()
        page.get_by_role("button", name="Older").click()
        page.get_by_text("An earlier page").wait_for()
        assert page.locator("#decisions tbody").inner_text() != first
        page.get_by_role("button", name="Newer").click()
        page.get_by_text("An earlier page").wait_for(state="detached")
        assert page.locator("#decisions tbody").inner_text() == first


def test_the_playground_decides_as_the_gateway_does(
    playwright: "Playwright", url: str, live: tuple[Served, Upstream, Database]
) -> None:
    prompt = "Begin with 5. Add 8. Take 3. Double it."
    body = {"model": "auto", "messages": [{"role": "user", "content": prompt}]}
    route = live[0].client.post("/route", json=body).json()
    with opened(playwright, url) as page:
        shown(page)
        page.get_by_label("Prompt", exact=True).press_sequentially(prompt, delay=1)
        probability = f"{100 * route['arms'][route['arm']]['success_probability']:.1f}%"
        page.locator("#decision tr.chosen", has_text=probability).wait_for()
        assert route["arm"] in page.locator("#decision .verdict").inner_text()
        assert page.locator("#decision tbody tr").count() == 3
        page.get_by_label("Prompt", exact=True).fill("")
        page.get_by_text("Each arm's probability").wait_for()


def test_one_question_is_asked_of_a_word_that_is_typed(playwright: "Playwright", url: str) -> None:
    """Or two, where typing halts; never one a letter."""
    word = "antidisestablishmentarianism"
    with opened(playwright, url) as page:
        shown(page)
        asked: list[str] = []
        page.on("request", lambda one: asked.append(one.post_data or "") if one.url.endswith(f"{DATA}/route") else None)
        page.get_by_label("Prompt", exact=True).press_sequentially(word, delay=30)
        page.wait_for_selector("#decision .verdict")
        assert word in asked[-1]
        assert len(asked) < len(word) / 2


def test_hostile_text_is_text(playwright: "Playwright", tmp_path: Path) -> None:
    """Whatever stands in the ledger, and whatever is typed: shown, cut to a length, never run."""
    ledger = f"sqlite:///{tmp_path}/ledger.sqlite"
    with dashboard(tmp_path, False, ledger={"url": ledger}) as (gateway, _):
        spoil(fill(gateway, ledger))
        for path in ("summary", *OF_LEDGER):
            assert len(gateway.client.get(f"{DATA}/{path}").content) < 100_000
        with opened(playwright, str(gateway.client.base_url).rstrip("/")) as page:
            shown(page)
            page.locator("#decisions tbody tr").first.click()
            page.wait_for_selector("#detail-body > .facts, #detail-body > .bad")
            text = page.locator("#detail-body").inner_text()
            assert "<script>hacked=1</script>" in text
            assert "DROP TABLE decisions" in text
            assert "\\u202e" in text  # what would turn the line around is shown instead
            assert "\u202e" not in page.locator("body").inner_text()
            assert len(text) < 50_000
            page.keyboard.press("Escape")
            for part in ("arms", "ways", "mix", "frontier", "reliability", "decisions"):
                assert "<script>" in page.locator(f"#{part}").inner_text(), part
            page.get_by_label("Prompt", exact=True).fill(HOSTILE)
            page.wait_for_selector("#decision .verdict")
            nothing_ran(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= 1280
            assert page.evaluate("document.documentElement.innerHTML.length") < 1_000_000


def test_whatever_the_gateway_says_is_text(playwright: "Playwright", url: str) -> None:
    """Replicas, problems, keys, knobs: what stands in no ledger is made hostile on its way to the page, and so is all
    the rest."""
    long = "A" * 1_000_000

    def answer(route: "Route") -> None:
        body = route.fetch().json()
        if "/summary" in route.request.url:
            body |= {"keys": ["team" + long], "policy": {"name": "policy", "knobs": {"knob": long}}}
        elif "/replicas" in route.request.url:
            body["problems"] = [{"part": "part", "message": long}]
            body["models"][0]["replicas"][0]["name"] = long
        route.fulfill(json=hostile(body))

    with opened(playwright, url) as page:
        page.route(f"**{DATA}/**", answer)
        page.reload()
        shown(page)
        page.get_by_label("Prompt", exact=True).fill("Begin with 5. Add 8.")
        page.wait_for_selector("#decision .verdict")
        page.locator("#decisions tbody tr").first.click()
        page.wait_for_selector("#detail-body > .facts")
        page.keyboard.press("Escape")
        for part in ("policy", "tiles", "arms", "ways", "mix", "replay", "reliability", "decisions", "replicas"):
            assert "<script>" in page.locator(f"#{part}").inner_text(), part
        assert "<script>" in page.locator("#replicas .bad").inner_text()
        assert "<script>" in (page.locator("#key-name option").last.text_content() or "")
        nothing_ran(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_a_replica_that_fails_its_check_is_shown_down(
    playwright: "Playwright", url: str, live: tuple[Served, Upstream, Database]
) -> None:
    upstream = live[1]
    with opened(playwright, url) as page:
        shown(page)
        assert page.locator("#replicas tbody tr", has_text="well").count() == 3
        upstream.health = 503
        try:
            page.locator("#replicas tbody tr", has_text="down").nth(2).wait_for()
            assert "models.nano-small" in page.locator("#replicas").inner_text()
        finally:
            upstream.health = 200
        page.locator("#replicas tbody tr", has_text="well").nth(2).wait_for()


def test_figures_that_do_not_come_are_told_and_come_back(playwright: "Playwright", url: str) -> None:
    with opened(playwright, url, may_say=("Failed to load",)) as page:
        shown(page)
        page.route("**/dashboard/data/**", lambda route: route.abort())
        page.get_by_label("24 h", exact=True).check()
        page.get_by_text("the gateway does not answer").wait_for()
        page.unroute("**/dashboard/data/**")
        page.get_by_label("7 days", exact=True).check()
        page.locator("#fault").wait_for(state="hidden")
