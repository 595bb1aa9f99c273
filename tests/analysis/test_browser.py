"""The page in a real browser: nothing loaded, phone width, hovering, sorting, dark pages."""

import shutil
from collections.abc import Iterator

import pytest

from analysis import report
from tests.analysis import made

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = made.write(tmp_path_factory.mktemp("made") / "results", made.everything())
    assert report.main([str(path)]) == 0
    return (path / "report" / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: "sync_api.Browser", address: str) -> Iterator["sync_api.Page"]:
    opened = browser.new_page(viewport={"width": 1100, "height": 800})
    opened.goto(address)
    yield opened
    opened.close()


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_loaded_nothing_fails_nothing_overflows(
    browser: "sync_api.Browser", address: str, width: int
) -> None:
    opened = browser.new_page(viewport={"width": width, "height": 800})
    requests: list[str] = []
    errors: list[str] = []
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(address)
    assert requests == [address]
    assert errors == []
    assert opened.evaluate("document.documentElement.scrollWidth") == width


def test_one_drawing_of_a_figure_is_seen_at_a_time(page: "sync_api.Page") -> None:
    assert page.locator(".wide:visible").count() > 0
    assert page.locator(".narrow:visible").count() == 0
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.locator(".wide:visible").count() == 0
    assert page.locator(".narrow:visible").count() > 0


def test_hovering_shows_exact_values(page: "sync_api.Page") -> None:
    mark = page.locator("#q-stalls .wide [aria-label*='cold, baseline: remote DRAM']").first
    mark.scroll_into_view_if_needed()
    mark.hover()
    tip = page.locator("#tip")
    assert tip.is_visible()
    assert "ns per instruction" in tip.inner_text()
    page.mouse.move(2, 2)
    assert not tip.is_visible()


def test_tables_sort_by_number(page: "sync_api.Page") -> None:
    table = page.locator("#q-published table").first
    heads = table.locator("thead th").all_inner_texts()
    column = heads.index("A") + 1
    cells = table.locator(f"tbody tr :nth-child({column})")

    def numbers() -> list[float]:
        return [float(text.replace("\N{MINUS SIGN}", "-")) for text in cells.all_inner_texts()]

    table.locator("thead th:text-is('A')").click()
    assert numbers() == sorted(numbers())
    assert len(set(numbers())) > 2
    table.locator("thead th:text-is('A')").press("Enter")
    assert numbers() == sorted(numbers(), reverse=True)


def test_dark_and_print(browser: "sync_api.Browser", address: str) -> None:
    opened = browser.new_page(color_scheme="dark")
    opened.goto(address)
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = opened.evaluate(paper)
    opened.emulate_media(media="print")
    assert opened.evaluate(paper) != dark
    assert opened.locator("nav").is_hidden()
