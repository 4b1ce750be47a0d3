"""The pages in a real browser: Debian's Chromium, as a person would open them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from primesvt.report import write_comparison, write_report

from .runs import metrics_of, whole_run, write_run

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP, PHONE = 1280, 390
PAGES = ("prime", "allocate", "missed", "bare", "comparison")

# What a person cannot see, or only by scrolling the page sideways.
FAULTS = """
() => {
  const found = [];
  const width = document.documentElement.clientWidth;
  const seen = node => { const box = node.getBoundingClientRect();
                         return box.width > 0 && box.height > 0; };
  const held = node => node.closest('.scroll, pre, details:not([open]), .legend');
  for (const node of document.querySelectorAll('section, figure, table, svg[role=img], h1, h2, p'))
    if (!held(node) && !seen(node)) found.push('not seen: ' + node.outerHTML.slice(0, 60));
  for (const node of document.querySelectorAll('svg[role=img] *, .bar'))
    if (node.matches('circle, path, rect, text') && !held(node) && !seen(node))
      found.push('nothing drawn: ' + node.outerHTML.slice(0, 60));
  for (const node of document.querySelectorAll('body *:not(title)')) {
    const box = node.getBoundingClientRect();
    if (!held(node) && !node.closest('th[scope=row]') && (box.right > width + 1 || box.left < -1))
      found.push('beside the page: ' + node.outerHTML.slice(0, 60));
  }
  return found;
}
"""
# Text against what lies behind it, by the contrast ratio of WCAG 2.
FAINT = """
() => {
  const ask = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const over = (colours) => { ask.clearRect(0, 0, 1, 1);
    for (const colour of colours) { ask.fillStyle = colour; ask.fillRect(0, 0, 1, 1); }
    return [...ask.getImageData(0, 0, 1, 1).data].slice(0, 3); };
  const light = rgb => { const [r, g, b] = rgb.map(v => { v /= 255;
    return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
    return .2126 * r + .7152 * g + .0722 * b; };
  const found = [];
  const words = 'h1, h2, h3, p, td, th, li, a, dt, dd, b, span, figcaption, small, text';
  for (const node of document.querySelectorAll(words)) {
    if (!node.textContent.trim() || node.closest('details:not([open])')) continue;
    const behind = [];
    for (let each = node; each; each = each.parentElement)
      behind.unshift(getComputedStyle(each).backgroundColor);
    const style = getComputedStyle(node), back = over(behind);
    const ink = over([...behind, node.tagName === 'text' ? style.fill : style.color]);
    const [a, b] = [light(ink), light(back)].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5)
      found.push(((a + .05) / (b + .05)).toFixed(2) + ' ' + node.outerHTML.slice(0, 80));
  }
  return found;
}
"""


@dataclass(kw_only=True)
class Visit:
    """A page as it was opened; ``said`` holds console lines and errors, ``asked`` requests."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        message = f"no browser found: none of {', '.join(NAMES)} is on the path"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    folders = {
        "prime": whole_run(root / "prime", "prime"),
        "allocate": whole_run(root / "allocate", "allocate"),
        "missed": whole_run(root / "missed", "allocate", met=False, required_saving=0.9),
        "bare": write_run(root / "bare", metrics=metrics_of(464_488)),
    }
    found = {name: write_report(folder) for name, folder in folders.items()}
    runs = [folders[name] for name in ("prime", "allocate", "missed")]
    return {**found, "comparison": write_comparison(runs, root / "comparison.html")}


@pytest.fixture
def visit(browser, pages):
    contexts = []

    def opened(name: str, width: int = DESKTOP, **options: Any) -> Visit:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        found = Visit(page=context.new_page())
        found.page.on("console", lambda message: found.said.append(message.text))
        found.page.on("pageerror", lambda error: found.said.append(str(error)))
        found.page.on("request", lambda request: found.asked.append(request.url))
        found.page.goto(pages[name].as_uri())
        return found

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_renders_alone_and_fits_the_window(visit, pages, name, width, scheme):
    found = visit(name, width, color_scheme=scheme)
    assert found.said == []
    assert found.asked == [pages[name].as_uri()]
    size = found.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert size == [width, width]
    assert found.page.evaluate(FAULTS) == []
    assert found.page.evaluate(FAINT) == []


def test_the_faults_would_be_found(visit):
    page = visit("prime", PHONE).page
    page.add_style_tag(content="h2 { display: none } .tiles { width: 700px }")
    faults = page.evaluate(FAULTS)
    assert any("not seen: <h2" in fault for fault in faults)
    assert any("beside the page" in fault for fault in faults)
    page.add_style_tag(content="p { color: #888 }")
    assert any("<p" in fault for fault in page.evaluate(FAINT))


@pytest.mark.parametrize("name", PAGES)
def test_light_and_dark_are_two_pictures(visit, name):
    shades = []
    for scheme in ("light", "dark"):
        page = visit(name, color_scheme=scheme).page
        shades.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert shades[0] == "rgb(255, 255, 255)"
    assert shades[1] != shades[0]


@pytest.mark.parametrize("name", PAGES)
def test_everything_is_there_without_scripts(visit, pages, name):
    with_scripts = visit(name).page.inner_text("body")
    page = visit(name, java_script_enabled=False).page
    assert page.inner_text("body") == with_scripts


@pytest.mark.parametrize("name", ["prime", "comparison"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_prints_on_white_pages(visit, name, scheme):
    page = visit(name, color_scheme=scheme).page
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    assert 2 <= printed.count(b"/Type /Page\n") <= 8
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_wide_tables_scroll_inside_themselves_by_keyboard(visit):
    page = visit("prime", PHONE).page
    plan = page.locator("#plan .scroll")
    assert plan.evaluate("node => node.scrollWidth > node.clientWidth")
    plan.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('#plan .scroll').scrollLeft > 0")


def test_the_table_behind_a_plot_opens(visit):
    page = visit("prime").page
    table = page.locator("#walk details table")
    assert not table.is_visible()
    page.locator("#walk summary").click()
    assert table.is_visible()
    assert table.locator("tbody tr").count() == 5


def test_a_screen_reader_is_told_what_a_plot_shows(visit):
    shown = visit("allocate").page.locator("#walk").aria_snapshot()
    assert "Plot of accuracy on the selection set against parameter memory saved" in shown
    assert "The plan saves 14.0% at 98.13%" in shown
