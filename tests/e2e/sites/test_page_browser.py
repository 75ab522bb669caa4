"""The operator's page in a real browser: a round passes while it is open, and everybody can use it.

Where there is no chromium the tests are skipped, unless FEDDDPM_REQUIRE_BROWSER is set.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError
from sqlalchemy import update
from tests.aggregator.dashboard.pages import seats_in
from tests.aggregator.support.driver import STEPS, ProblemError, drive
from tests.aggregator.support.federations import Federation, read_safetensors
from tests.aggregator.support.sites import Site
from tests.aggregator.support.watching import first_state, result_of, until

from fedddpm_aggregator.db.tables import RunRow
from fedddpm_aggregator.selftest.serving import served_here
from fedddpm_protocol.agreement.documents import open_result
from fedddpm_protocol.agreement.model_layout import TensorSpec, model_hash
from fedddpm_protocol.wire.messages import SignedDocument

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PASSWORD = "correct horse battery"  # noqa: S105 - of a page that lives for one test
TITLES = [
    "Training and joining",
    "Sharing keys",
    "Uploading masked updates",
    "Confirming who is in",
    "Releasing the masks",
]
# Runs before the page's own script and notes what the page does by itself.
NOTES = """
window.notes = {violations: [], phases: [], spoken: []};
addEventListener("securitypolicyviolation", (event) => notes.violations.push(event.violatedDirective));
addEventListener("DOMContentLoaded", () => {
  const note = (list, text) => { if (text && list.at(-1) !== text) list.push(text); };
  const look = () => {
    note(notes.phases, document.querySelector(".phase")?.textContent);
    note(notes.spoken, document.getElementById("announce").textContent);
  };
  look();
  new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true});
});
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if program is None:
        if os.environ.get("FEDDDPM_REQUIRE_BROWSER"):
            pytest.fail("FEDDDPM_REQUIRE_BROWSER is set, but there is no chromium to start")
        pytest.skip("there is no chromium to start (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield running
        running.close()


class Watched:
    """A page whose complaints and requests are kept."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.url = url
        self.context: BrowserContext = browser.new_context(reduced_motion="reduce", **options)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.add_init_script(NOTES)

    def open(self, path: str = "/") -> Page:
        """Go there and wait until the stream runs."""
        self.page.goto(self.url + path)
        expect(self.page.locator("#line")).to_have_text("Live", timeout=20_000)
        return self.page

    def close(self) -> None:
        """Nothing strange happened, and nothing was asked of another host."""
        assert self.page.evaluate("notes.violations") == []
        assert self.complaints == []
        assert {request for request in self.requests if not request.startswith(self.url)} == set()
        self.context.close()


def fail_an_attempt(site: Site) -> None:
    """All but two members lose their secrets once the cohort is closed."""
    rounds_done = first_state(site).results
    drive(seats_in(site, rounds_done), ["join"])
    for seat in seats_in(site, rounds_done)[2:]:
        with pytest.raises(ProblemError, match=r"is over|failed"):
            seat.join(seq=2)
    until(site, lambda state: state.attempt == 1)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two rounds are published, an attempt at the third has failed, the next one waits; an older run is there."""
    federation = Federation(tmp_path_factory.mktemp("story"))
    federation.start_run(rounds=1, name="run-0", scale=0.5)
    with served_here(federation.settings) as url:
        site = Site(federation, url)
        drive(seats_in(site))
        until(site, lambda state: state.status == "finished")
        federation.start_run(rounds=4)
        until(site, lambda state: state.run == "run-1" and state.spec is not None)
        for index in range(2):
            drive(seats_in(site, index))
        until(site, lambda state: state.round == 2)
        fail_an_attempt(site)
        yield site
        site.close()


def test_a_round_passes_while_the_page_is_open(browser: Browser, tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.start_run(rounds=2)
    with served_here(federation.settings) as url:
        site = Site(federation, url)
        watched = Watched(browser, url)
        page = watched.open()
        page.evaluate("window.unchanged = true")
        seats, phase = seats_in(site), page.locator(".phase")
        expect(phase).to_have_text("Training and joining", timeout=20_000)
        drive(seats[:2], ["join"])
        expect(page.locator(".count").first).to_contain_text("2 of 4 institutions", timeout=20_000)
        expect(page.locator(".missing")).to_have_text("Not heard of yet: c, d")
        drive(seats[2:], ["join"])
        for step, title in zip(STEPS[1:], TITLES[1:], strict=True):
            expect(phase).to_have_text(title, timeout=20_000)
            expect(page.locator("[aria-current=step]")).to_have_count(1)
            drive(seats, [step])
        expect(page.locator("#round-1")).to_contain_text("4 of 4", timeout=20_000)
        expect(page.locator("#round-title")).to_have_text("Round 2 of 2")
        expect(phase).to_have_text("Training and joining")
        brief = ("Opening the sum", "Done")  # over before anybody looks, or not
        passed = [title for title in page.evaluate("notes.phases") if title not in brief]
        assert passed == [*TITLES, TITLES[0]]
        expect(page.locator("#announce")).to_have_text("Round 2: Training and joining")
        assert page.evaluate("unchanged")  # never loaded anew

        first = page.locator("#model-1")
        with page.expect_download() as downloading:
            first.get_by_role("link", name="Model after round 1").click()
        result = result_of(site, 0)
        assert (
            hash_of(Path(downloading.value.path()))
            == result.model_hash.hex()
            == first.locator("code").first.inner_text()
        )
        with page.expect_download() as downloading:
            first.get_by_role("link", name="Signed result of round 1").click()
        document = SignedDocument.model_validate_json(Path(downloading.value.path()).read_bytes())
        assert open_result(document, federation.roster) == result
        watched.close()
        site.close()


def hash_of(path: Path) -> str:
    """The hash over manifest and values of a downloaded model."""
    tensors = read_safetensors(path.read_bytes())
    names = ("decoder.a", "decoder.b")
    manifest = tuple(TensorSpec(name, tensors[name].shape) for name in names)
    return model_hash(manifest, np.concatenate([tensors[name].reshape(-1) for name in names])).hex()


def test_focus_and_opened_details_survive_a_change(browser: Browser, story: Site) -> None:
    watched = Watched(browser, story.url, permissions=["clipboard-read", "clipboard-write"])
    page = watched.open()
    button = page.locator("#model-2 .copy").first
    button.click()
    copied = page.locator("#model-2 code").first.inner_text()
    assert page.evaluate("navigator.clipboard.readText()") == copied
    with story.federation.context() as ctx, ctx.transaction() as db:
        db.execute(update(RunRow).where(RunRow.name == "run-1").values(reason="a reason <b>of its own</b>"))
    expect(page.get_by_text("a reason <b>of its own</b>")).to_be_visible(timeout=20_000)
    expect(button).to_be_focused()
    with story.federation.context() as ctx, ctx.transaction() as db:
        db.execute(update(RunRow).where(RunRow.name == "run-1").values(reason=None))
    expect(page.get_by_text("a reason <b>of its own</b>")).to_have_count(0, timeout=20_000)
    watched.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_is_readable_in_light_and_dark_on_a_phone_and_a_desk(
    browser: Browser, story: Site, scheme: Any, width: int
) -> None:
    watched = Watched(browser, story.url, color_scheme=scheme, viewport={"width": width, "height": 800})
    page = watched.open()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 60
    assert {text: ratio for text, ratio in contrasts if ratio < 4.5} == {}
    visible = [chart for chart in page.locator("svg.chart").all() if chart.is_visible()]
    assert [chart.get_attribute("class") for chart in visible] == [f"chart {'narrow' if width < 600 else 'wide'}"]
    watched.close()


def test_people_who_hear_or_type_can_use_it(browser: Browser, story: Site) -> None:
    watched = Watched(browser, story.url, viewport={"width": 1200, "height": 900})
    page = watched.open()
    assert page.evaluate(FAULTS) == []
    for role in ("banner", "main", "contentinfo"):
        assert page.get_by_role(role).count() == 1, role
    reached = []
    for _ in range(200):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement === document.body ? null : document.activeElement.outerHTML")
        )
        if reached[-1] is None or (reached[-1] == reached[0] and len(reached) > 1):
            break
    controls = page.evaluate(
        "[...document.querySelectorAll('a[href], button, select, summary, [tabindex=\"0\"]')]"
        ".filter((control) => control.checkVisibility()).map((control) => control.outerHTML)"
    )
    assert [html for html in controls if html not in reached] == []
    assert "Skip to the content" in reached[0]
    page.keyboard.press("Home")
    page.locator(".skip").focus()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    watched.close()


def test_a_failed_attempt_and_another_run_are_found_without_scripts(browser: Browser, story: Site) -> None:
    watched = Watched(browser, story.url, java_script_enabled=False)
    page = watched.page
    page.goto(story.url)
    failures = page.get_by_role("region", name="Failed attempts")
    expect(failures).to_contain_text("Round 3, attempt 1, decoder")
    expect(failures).to_contain_text("So many institutions restarted or left")
    expect(failures).to_contain_text("What to do.")
    expect(page.locator(".copy").first).to_be_hidden()
    page.get_by_label("Run").select_option("run-0")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_text("run run-0: 1 of 1 rounds published")).to_be_visible()
    page.get_by_role("link", name="Back to the current round").click()
    expect(page.locator("#round-title")).to_have_text("Round 3 of 4")
    assert watched.complaints == []
    watched.context.close()


def test_the_browser_asks_for_the_password(browser: Browser, tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    path = tmp_path / "password"
    path.write_text(PASSWORD)
    path.chmod(0o600)
    with served_here(federation.settings.model_copy(update={"page_password_file": path})) as url:
        stranger = browser.new_context()
        assert stranger.request.get(url).status == 401
        with pytest.raises(PlaywrightError, match="ERR_INVALID_AUTH_CREDENTIALS"):  # it would ask, with a window
            stranger.new_page().goto(url)
        stranger.close()
        watched = Watched(browser, url, http_credentials={"username": "operator", "password": PASSWORD})
        expect(watched.open().get_by_role("heading", name="Next step")).to_be_visible()
        watched.complaints = [text for text in watched.complaints if "401" not in text]
        watched.close()


# What every text has as contrast to what is behind it, after WCAG 2.2: [[text, ratio], ...].
CONTRASTS = """() => {
  const parse = (colour) => {
    const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number);
    return {rgb: [r, g, b], a};
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const {rgb, a} = parse(getComputedStyle(at).backgroundColor);
      if (a === 1) return rgb;
    }
    throw new Error("the body has no colour of its own");
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (!text || !element.checkVisibility() || element.closest(".hidden, title, desc, option")) continue;
    const style = getComputedStyle(element);
    const ink = parse(element.closest("svg") ? style.fill : style.color).rgb;
    const [high, low] = [light(ink), light(behind(element))].sort((a, b) => b - a);
    found.push([text.slice(0, 40), (high + 0.05) / (low + 0.05)]);
  }
  return found;
}"""

# What an audit would find: headings that jump, controls and pictures without names, tables without captions or scopes.
FAULTS = """() => {
  const faults = [];
  const visible = (query) => [...document.querySelectorAll(query)].filter((element) => element.checkVisibility());
  if (!document.documentElement.lang) faults.push("no language");
  if (!document.title) faults.push("no title");
  let level = 0;
  for (const heading of visible("h1, h2, h3, h4, h5, h6")) {
    const own = Number(heading.tagName[1]);
    if (own > level + 1) faults.push(`heading jumps to ${own}: ${heading.textContent}`);
    if (!heading.textContent.trim()) faults.push("empty heading");
    level = own;
  }
  if (visible("h1").length !== 1) faults.push("not one h1");
  for (const control of visible("a, button, select, input, summary")) {
    const label = control.getAttribute("aria-label") || control.labels?.[0]?.textContent || control.textContent;
    if (!label.trim()) faults.push(`no name: ${control.outerHTML}`);
    const {height} = control.getBoundingClientRect();
    if (control.matches("button, select") && height < 24) faults.push(`small: ${control.outerHTML}`);
  }
  for (const table of visible("table")) {
    if (!table.caption && !table.closest("[role=region]")) faults.push("table without a caption");
    for (const cell of table.querySelectorAll("th:not([scope])")) faults.push(`no scope: ${cell.textContent}`);
  }
  for (const picture of visible("svg, img")) {
    if (picture.getAttribute("aria-hidden") === "true") continue;
    if (!picture.querySelector("title") || !picture.querySelector("desc")) faults.push("picture without words");
  }
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1) faults.push(`id twice: ${id}`);
  for (const element of document.querySelectorAll("[aria-labelledby]")) {
    for (const id of element.getAttribute("aria-labelledby").split(" ")) {
      if (!document.getElementById(id)) faults.push(`labelled by nothing: ${id}`);
    }
  }
  for (const region of visible("[tabindex='0']")) {
    if (!region.getAttribute("aria-label") && !region.getAttribute("aria-labelledby")) faults.push("nameless stop");
  }
  if (visible("[role=status][aria-live=polite]").length !== 1) faults.push("not one live region");
  return faults;
}"""
