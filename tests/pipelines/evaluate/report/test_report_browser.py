"""The evaluation report in a real browser: what a reader sees, clicks and types. Skipped where there is no Chromium."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from support.evaluations import CLIP_I, RMSE, plain_image, run
from support.places import BENCHMARKS

from pipelines.evaluate.aggregate import RunScores
from pipelines.evaluate.item import Item, Result
from pipelines.evaluate.report.report import REPORT, write_report

sys.path.insert(0, str(BENCHMARKS))

from browser import Browser, find_chromium  # lies beside the measurement that uses it as well

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None and "CI" not in os.environ, reason="no Chromium on this machine"),
]

ATTACK = "<img src=x onerror='window.hit=1'><script>window.hit=1</script>"


def runs() -> list[RunScores]:
    count = 40
    values = {f"i{n:02}": {"CLIP-I": float(n * 7 % count), "RMSE": n / 10} for n in range(count)}
    better = {key: {"CLIP-I": of["CLIP-I"] + 5, "RMSE": of["RMSE"]} for key, of in values.items() if key != "i39"}
    families = {f"i{n:02}": "editing" for n in range(36, 40)}
    metrics = (CLIP_I, RMSE)
    made = [
        run(values, name="before", metrics=metrics, families=families, main={"compositional": "CLIP-I"}),
        run(better, name="after", metrics=metrics, families=families, failed={"i39": ATTACK},
            main={"compositional": "CLIP-I", "editing": "RMSE"}),
    ]  # fmt: skip
    odd = Item(
        "odd", "understanding", f"<style>What is {ATTACK} in <image_1>?", (b"broken", plain_image()), answer_text="B"
    )
    made[0].results.append(Result(odd, text=ATTACK))
    return made


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    write_report(runs(), folder)
    return (folder / REPORT).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_chromium()
    assert program is not None, "CI runs these tests: .ci/run installs Chromium"
    with Browser(program) as one:
        yield one


@pytest.fixture
def page(browser: Browser, address: str) -> Browser:
    browser.view(1280, 900)
    browser.requests.clear()
    browser.errors.clear()
    browser.open(address)
    return browser


def pick(page: Browser, control: str, value: str) -> None:
    page.run(
        f"{{ const c = document.getElementById('{control}'); c.value = '{value}'; c.dispatchEvent(new Event('change')); }}"
    )


def cards(page: Browser) -> list[str]:
    return page.run("[...document.querySelectorAll('.card .meta')].map((meta) => meta.textContent)")


def test_it_loads_nothing_but_itself_and_no_error_is_logged(page: Browser, address: str) -> None:
    assert [place for place in page.requests if not place.startswith("data:")] == [address]
    assert page.errors == []


def test_best_and_worst_come_first_and_only_they_are_drawn(page: Browser) -> None:
    shown = cards(page)
    order = sorted(range(36), key=lambda n: n * 7 % 40)
    assert shown == [f"i{n:02}" for n in (*order[::-1][:6], *order[:6])]
    assert page.run("[...document.querySelectorAll('#list h3')].map((one) => one.textContent)") == ["Best", "Worst"]
    assert page.run("document.getElementById('status').textContent") == "12 of 36 samples shown"


def test_every_image_is_there_and_is_described(page: Browser) -> None:
    page.run("Promise.all([...document.images].map((image) => image.decode())).then(() => 0)")
    described = page.run("[...document.images].map((image) => [image.alt, image.naturalWidth])")
    assert len(described) == 12 * 5
    assert [alt for alt, _ in described[:5]] == [
        "reference 1", "reference 2", "reference answer", "output of before", "output of after",
    ]  # fmt: skip
    assert all(width > 0 for _, width in described)


def test_orders_follow_the_controls(page: Browser) -> None:
    order = sorted(range(36), key=lambda n: n * 7 % 40)
    pick(page, "order", "worst")
    assert cards(page) == [f"i{n:02}" for n in order[:12]]
    pick(page, "order", "best")
    pick(page, "metric", "1")  # RMSE, where less is better
    assert cards(page)[:3] == ["i00", "i01", "i02"]
    pick(page, "family", "1")
    assert page.run("document.getElementById('metric').selectedOptions[0].textContent") == "RMSE"
    assert cards(page) == ["i36", "i37", "i38", "i39"]
    assert page.run("document.querySelector('#list h3').textContent") == "Without this score"
    pick(page, "order", "failed")
    assert cards(page) == ["i39"]


def test_the_whole_family_can_be_read_with_the_keyboard(page: Browser) -> None:
    pick(page, "order", "asked")
    page.run("document.getElementById('more').focus()")
    page.press("Enter", 13, "\r")
    assert page.run("document.activeElement.querySelector('.meta').textContent") == "i12"  # the first that is new
    for _ in range(2):  # scrolling may have drawn the rest meanwhile
        page.run("document.getElementById('more').focus()")
        page.press("Enter", 13, "\r")
    assert cards(page) == [f"i{n:02}" for n in range(36)]
    assert page.run("document.getElementById('more').hidden")


def test_scrolling_draws_the_next_samples(page: Browser) -> None:
    pick(page, "order", "asked")
    page.run("document.getElementById('more').scrollIntoView({behavior: 'instant'})")
    drawn = page.run("""new Promise((done) => { const start = Date.now(); (function look() {
        const count = document.querySelectorAll('.card').length;
        if (count > 12 || Date.now() - start > 5000) done(count); else setTimeout(look, 20); })(); })""")
    assert drawn > 12


def test_a_table_sorts_by_its_headings_with_mouse_and_keyboard(page: Browser) -> None:
    table = "[...document.querySelectorAll('#results table')].find((one) => one.textContent.includes('XVerse'))"
    column = f"[...{table}.rows[0].cells].findIndex((cell) => cell.textContent.startsWith('CLIP-I'))"
    values = f"[...{table}.tBodies[0].rows].map((row) => row.cells[{column}].dataset.value)"
    button = f"{table}.rows[0].cells[{column}].querySelector('button')"
    numbers = [float(value) for value in page.run(values) if value]
    page.run(f"{button}.click()")
    assert [float(value) for value in page.run(values)] == sorted(numbers, reverse=True)
    page.run(f"{button}.focus()")
    page.press("Enter", 13, "\r")
    assert [float(value) for value in page.run(values)] == sorted(numbers)
    assert page.run(f"{button}.closest('th').getAttribute('aria-sort')") == "ascending"


def test_words_from_outside_are_shown_and_never_run(page: Browser) -> None:
    pick(page, "family", "2")
    words = page.run("document.querySelector('.card').textContent")
    assert words.count(ATTACK) == 2
    assert page.run("window.hit === undefined && !document.querySelector('.card script')")
    assert (
        page.run("document.querySelector('.card .blank').getAttribute('aria-label')")
        == "reference 1: cannot be decoded"
    )
    colour = page.run("getComputedStyle(document.querySelector('.card .t-style')).backgroundColor")
    assert colour == "rgb(169, 58, 232)"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(360, 740), (1280, 900)], ids=["phone", "desktop"])
def test_nothing_sticks_out_and_all_words_can_be_read(
    browser: Browser, address: str, width: int, height: int, dark: bool
) -> None:
    browser.view(width, height, dark=dark, phone=width < 500)
    browser.open(address)
    for family in ("0", "2"):
        pick(browser, "family", family)
        assert browser.run("document.scrollingElement.scrollWidth") == width
        assert browser.run("[...document.querySelectorAll('.card')].every((one) => one.scrollWidth <= one.clientWidth)")
    # WCAG AA: 4.5 to 1 for text on what lies behind it.
    faint = browser.run("""(() => {
        const light = (rgb) => { const [r, g, b] = rgb.map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const colour = (words) => words.match(/[\\d.]+/g).map(Number);
        const behind = (element) => { for (; element; element = element.parentElement) {
            const found = colour(getComputedStyle(element).backgroundColor); if (found.length < 4 || found[3] === 1) return found; }
            return [255, 255, 255]; };
        return [...document.querySelectorAll('main *, header *')].filter((element) =>
            [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) && element.offsetParent
        ).map((element) => { const one = light(colour(getComputedStyle(element).color).slice(0, 3)), two = light(behind(element).slice(0, 3));
            return [(Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05), element.outerHTML.slice(0, 80)]; }
        ).filter(([ratio]) => ratio < 4.5); })()""")
    assert faint == []
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(21, 23, 26)" if dark else "rgb(255, 255, 255)")
