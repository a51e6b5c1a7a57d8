"""The HTML page of a report, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, chromium, opened
from report_samples import HOSTILE, hostile, pair_of, report

pytestmark = pytest.mark.skipif(chromium() is None, reason="no chromium, chromium-browser or google-chrome on this machine")


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "resnet18.html"
    path.write_text(report("resnet18", (pair_of("resnet18"),)).to_html(), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(resnet: Path) -> Iterator[Page]:
    with opened(resnet) as found:
        found.wait("document.documentElement.dataset.ready === '2'")
        yield found


def details(page: Page) -> str:
    return str(page.value("document.querySelector('aside').innerText"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_screenshot_in_light_and_dark(resnet: Path, scheme: str, tmp_path: Path) -> None:
    with opened(resnet, scheme=scheme) as page:
        page.wait("document.documentElement.dataset.ready === '2'")
        shot = page.screenshot()
        background = page.value("getComputedStyle(document.body).backgroundColor").removeprefix("rgb(").rstrip(")")
        assert page.problems == []
        assert [url for url in page.requests if not url.startswith("file:")] == []
    (tmp_path / f"{scheme}.png").write_bytes(shot)
    assert shot.startswith(b"\x89PNG")
    assert (min(map(int, background.split(","))) > 200) == (scheme == "light")


def test_click_shows_the_node_and_where_it_came_from(page: Page) -> None:
    fused = page.value("document.querySelector('[data-graph=\"0-after\"] .box.fused').id")
    page.click(f"#\\{ord(fused[0]):x} {fused[1:]}")
    text = details(page)
    assert "made of" in text
    assert "conv1, bn1, relu" in text.replace("\n", " ")
    assert "was, before" in text
    assert page.value("document.querySelectorAll('[data-graph=\"0-before\"] .twin').length") == 3
    assert page.value("location.hash") == f"#node-{fused}"
    assert page.problems == []


def test_keyboard_walks_along_the_edges(page: Page) -> None:
    page.value('document.querySelector(\'[data-graph="0-before"] .box[tabindex="0"]\').focus()')
    page.press("Enter", "\r")
    first = details(page)
    page.press("ArrowDown")
    assert details(page) != first
    page.press("ArrowUp")
    assert details(page) == first
    page.press("ArrowRight")
    assert details(page) != first
    assert page.value("document.activeElement.classList.contains('chosen')")
    assert page.problems == []


def test_search_and_zoom(page: Page) -> None:
    page.value("document.querySelector('[data-graph=\"0-before\"] input').focus()")
    page.type("downsample.0")
    assert page.value("document.querySelector('[data-graph=\"0-before\"] output').textContent") == "3 found"
    page.press("Enter", "\r")
    assert "downsample" in details(page)
    width = "document.querySelector('[data-graph=\"0-before\"] svg').width.baseVal.value"
    before = page.value(width)
    page.click('[data-graph="0-before"] [data-zoom="in"]')
    assert page.value(width) == pytest.approx(1.25 * before)
    page.click('[data-graph="0-before"] [data-zoom="fit"]')
    assert page.value(width) <= page.value("document.querySelector('.canvas').clientWidth")
    assert page.problems == []


def test_a_link_opens_at_its_node(resnet: Path) -> None:
    with opened(resnet, fragment="#node-0-before-1") as page:
        page.wait("document.documentElement.dataset.ready === '2'")
        assert "conv1" in details(page)
        assert page.problems == []


def test_narrow_window_has_no_sideways_scroll(resnet: Path) -> None:
    with opened(resnet, width=390, height=800) as page:
        page.wait("document.documentElement.dataset.ready === '2'")
        assert page.value("document.documentElement.scrollWidth") <= 390


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_text(hostile().to_html(), encoding="utf-8")
    with opened(path, fragment="#node-0-before-1") as page:
        page.wait("document.documentElement.dataset.ready === '2'")
        assert page.value("window.pwned") is None
        assert page.value("document.querySelectorAll('img').length") == 0
        assert "<img src=x" in details(page)
        assert page.value("document.title").startswith(HOSTILE[:60])
        assert page.problems == []


def test_no_graphs(tmp_path: Path) -> None:
    path = tmp_path / "plain.html"
    path.write_text(report().to_html(), encoding="utf-8")
    with opened(path) as page:
        page.wait("document.documentElement.dataset.ready === '0'")
        assert page.problems == []
