"""The report in a real browser: headless Chromium opens the file as a reader would, with no network."""

import functools
import shutil

import pytest
from runs import LIBRARY, write_run

from discojax.report import page
from discojax.search import archive as archives

pytestmark = pytest.mark.browser

CHROMIUM = next(
    filter(
        None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))
    ),
    None,
)
BAD = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'><b>bold</b>"
PLOTS = ("frontier", "loss", "slope", "proposals", "lineage", "lanes")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra `test` has playwright")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: `apt-get install chromium` brings it")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    config = write_run(tmp_path_factory.mktemp("browser") / "shown", hostile=((BAD, BAD),))
    return page.write(config)


@pytest.fixture(scope="module")
def opened(browser, report):
    """Opens the report; whatever the browser complains of, and whatever it asks for, is noted."""

    def opened(width=1280, scheme="light", file=report, clock=False):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab = context.new_page()
        if clock:
            tab.clock.install()
        tab.complaints = []
        tab.on("console", lambda m: tab.complaints.append(m.text) if m.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.on("dialog", lambda dialog: (tab.complaints.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda r: None if r.url == file.as_uri() else tab.complaints.append(r.url))
        tab.goto(file.as_uri())
        tab.wait_for_selector("html[data-drawn=yes]", timeout=120_000)
        return tab

    return opened


@pytest.fixture(scope="module")
def seen(opened):
    """The same, once for each width and scheme: for tests that only look."""
    return functools.cache(opened)


@pytest.fixture
def desk(seen):
    return seen(1280, "light")


def names(tab, table):
    return [
        x.strip()
        for x in tab.locator(f"#{table} > tbody > tr:not([hidden]):not(.detail) > th").all_inner_texts()
    ]


def column(tab, number):
    cells = f"#all > tbody > tr:not([hidden]):not(.detail) > :nth-child({number})"
    return tab.eval_on_selector_all(cells, "cells => cells.map(cell => cell.dataset.v)")


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
)
def test_nothing_is_complained_of_and_nothing_is_cut(seen, width, scheme):
    tab = seen(width, scheme)
    assert tab.complaints == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("plot", PLOTS)
def test_every_plot_has_marks_and_named_axes(desk, plot):
    svg = desk.locator(f"#{plot} svg").first
    assert svg.get_attribute("aria-label")
    marks = svg.locator(
        "g.mark-symbol.role-mark path, g.mark-line.role-mark path, g.mark-rect.role-mark path"
    )
    assert marks.count() >= 1 and all(d for d in (m.get_attribute("d") for m in marks.all()[:3]))
    titles = svg.locator("g.role-axis-title text").all_text_contents()
    assert len(titles) >= 2 and all(title.strip() for title in titles)


def test_colours_are_those_of_the_scheme(seen):
    """They are variables of the style sheet, which the drawings must have understood."""
    strokes = {}
    for scheme in ("light", "dark"):
        line = seen(1280, scheme).locator("#loss g.mark-line.role-mark path").first
        strokes[scheme] = line.evaluate("line => getComputedStyle(line).stroke")
    assert strokes["light"].startswith("rgb") and strokes["light"] != strokes["dark"]


def test_a_table_is_sorted_by_its_headings(opened):
    tab = opened()
    heading = tab.locator("#all thead th").nth(4)
    heading.locator("button").click()
    values = column(tab, 5)
    known = [float(v) for v in values if v]
    assert heading.get_attribute("aria-sort") == "descending"
    assert len(known) > 5 and known == sorted(known, reverse=True)
    assert all(not v for v in values[len(known) :])  # what is not known comes last
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [float(v) for v in column(tab, 5) if v] == sorted(known)
    tab.locator("#all thead th").nth(1).locator("button").click()
    by_name = names(tab, "all")
    assert by_name == tab.evaluate("names => [...names].sort((a, b) => a.localeCompare(b, 'en'))", by_name)


def test_a_table_is_filtered(opened):
    tab = opened()
    everyone = names(tab, "all")
    tab.locator("[data-filter=all]").fill("discopop")
    found = names(tab, "all")
    assert "discopop" in found and len(found) < len(everyone)
    tab.locator("[data-filter=all]").fill("finite at margin 0")  # a failure
    assert names(tab, "all") == ["broken"]
    tab.locator("[data-filter=all]").fill("")
    tab.locator("[data-how-filter=all]").select_option("library")
    assert names(tab, "all") == list(LIBRARY)
    assert tab.locator("output[data-count=all]").inner_text() == f"{len(LIBRARY)} of {len(everyone)}"
    tab.locator("[data-status-filter=board]").select_option("baseline")
    assert names(tab, "board") == ["dpo"]


def test_a_candidate_opens_by_keyboard_alone(opened):
    tab = opened()
    tab.locator("[data-filter=all]").focus()
    for _ in range(40):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.matches('#all tbody button.open')"):
            break
    assert tab.evaluate("document.activeElement.textContent") == "dpo"
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.keyboard.press("Enter")
    card = tab.locator("tr.detail .card")
    card.locator("svg").nth(1).wait_for()
    assert card.locator("math mtr").count() >= 4 and "ℓ" in card.locator("math").text_content()
    assert "jax.nn.softplus(-x)" in card.locator("pre[aria-label=source]").inner_text()
    assert "launch export dpo --run" in card.locator("pre[aria-label=export]").inner_text()
    assert "Rafailov" in card.inner_text()
    tab.keyboard.press("Enter")
    assert card.count() == 0
    assert tab.complaints == []


def test_a_parent_is_one_click_away(opened):
    tab = opened()
    tab.locator("[data-how-filter=all]").select_option("mutate")
    tab.locator("#all tbody tr:not([hidden]) button.open").first.click()
    parent = tab.locator("tr.detail .card button.open").first
    name = parent.inner_text()
    parent.click()
    tab.wait_for_function("name => document.activeElement.textContent === name", arg=name)
    assert tab.locator("tr.detail").count() == 2


def test_beta_changes_the_curves(opened):
    tab = opened()
    line = tab.locator("#slope g.mark-line.role-mark path").first
    before = line.get_attribute("d")
    other = next(
        v for v in tab.locator("#beta option").all_inner_texts() if v != tab.locator("#beta").input_value()
    )
    tab.locator("#beta").select_option(label=other)
    tab.wait_for_function(
        "d => document.querySelector('#slope g.mark-line.role-mark path').getAttribute('d') !== d", arg=before
    )


@pytest.mark.parametrize("plot", ["frontier", "loss"])
@pytest.mark.parametrize("by", ["pointer", "keyboard"])
def test_a_legend_picks(opened, plot, by):
    tab = opened()
    faint = """plot => [...document.querySelectorAll(`#${plot} g.mark-line.role-mark path`)]
        .filter(path => Number(getComputedStyle(path).opacity) < 0.2).length"""
    assert tab.evaluate(faint, plot) == 0
    name = tab.locator(f"#{plot} g.role-legend-label text").first
    if by == "pointer":
        name.click()
    else:
        tab.locator(f"#{plot} g.role-legend-label text").nth(1).focus()
        tab.keyboard.press("Shift+Tab")
        assert name.evaluate("name => name === document.activeElement")
        tab.keyboard.press("Enter")
    tab.wait_for_function(f"plot => ({faint})(plot) > 1", arg=plot)
    if by == "keyboard":
        assert name.evaluate("name => name === document.activeElement")
        tab.keyboard.press("Escape")
        tab.wait_for_function(f"plot => ({faint})(plot) === 0", arg=plot)


def test_hostile_names_and_thoughts_stay_text(opened):
    tab = opened()
    button = tab.locator("#all tbody button.open", has_text="alert(1)")
    assert button.inner_text() == BAD
    button.click()
    card = tab.locator("tr.detail .card")
    card.locator("svg").nth(1).wait_for()
    assert BAD in card.inner_text()
    assert tab.locator("img").count() == 0 and tab.locator("b").count() == 0
    tab.locator("#lineage g.mark-symbol.role-mark path").last.hover()
    tab.locator("#proposals g.mark-symbol.role-mark path").last.hover()
    tab.wait_for_timeout(200)
    assert tab.locator("img").count() == 0
    assert tab.complaints == []


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_it_is_accessible(opened, scheme):
    """By axe's rules of WCAG 2 A and AA, contrast among them, with a card open."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    tab = opened(scheme=scheme)
    assert tab.locator("#controls tbody tr").count() == 4
    tab.locator("#all tbody button.open").first.click()
    tab.locator("tr.detail svg").nth(1).wait_for()
    tab.evaluate("document.querySelector('meta[http-equiv]').remove()")
    found = axe.Axe().run(tab, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa"]}).response["violations"]
    said = [(v["id"], [node["html"][:200] for node in v["nodes"][:3]]) for v in found]
    assert said == []


def test_it_prints(opened, tmp_path):
    """All of it: nothing that is folded away, cut or only there on a click is missing on paper."""
    tab = opened(scheme="dark")
    tab.locator("#all tbody button.open").first.click()
    tab.locator("tr.detail svg").nth(1).wait_for()
    tab.emulate_media(media="print")
    tab.set_viewport_size({"width": 680, "height": 1000})
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.locator("#run details").get_attribute("open") is not None
    shown = tab.locator("#board tbody button.open").all_inner_texts()
    assert tab.locator("#paper h3").all_inner_texts()[:1] == shown[:1] and len(shown) == 7
    assert tab.locator("#paper > .card").count() == 7
    assert all("def " in text for text in tab.locator("#paper pre[aria-label=source]").all_inner_texts())
    cut = """() => [...document.querySelectorAll("pre, .formula, .scroll")]
        .filter(e => e.clientWidth)
        .filter(e => e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1)
        .map(e => e.outerHTML.slice(0, 100))"""
    assert tab.evaluate(cut) == []
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.locator("#paper").count() == 0
    assert tab.locator("#run details").get_attribute("open") is None
    tab.pdf(path=tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").stat().st_size > 20_000


def test_a_run_that_crashed_opens(opened, tmp_path):
    config = write_run(tmp_path / "begun", proposed=0, scored=False, finished=False)
    tab = opened(file=page.write(config))
    assert "stopped" in tab.locator("header").inner_text() and names(tab, "all")[: len(LIBRARY)] == list(
        LIBRARY
    )
    assert tab.complaints == []


def test_the_page_of_a_run_that_goes_on_loads_itself_anew(opened, tmp_path):
    config = write_run(tmp_path / "going", proposed=0, scored=False, finished=False)
    with archives.open_archive(config.run.path / "archive.sqlite", "of a test"):
        file = page.write(config)
    tab = opened(file=file, clock=True)
    running, stopped = (tab.locator(f"html[data-state={state}]") for state in ("running", "stopped"))
    page.write(config)
    tab.locator("#live").uncheck()
    tab.clock.fast_forward(21_000)
    tab.wait_for_timeout(300)
    assert running.count() == 1 and stopped.count() == 0
    tab.locator("#live").check()
    tab.clock.fast_forward(21_000)
    stopped.wait_for(state="attached", timeout=60_000)
    assert "stopped before its end" in tab.locator("body").inner_text()
    assert tab.locator("#live").count() == 0 and tab.complaints == []
