"""A file's page in a real browser: it loads nothing, is heard, sorted and searched, and takes no name for markup."""

import pytest
from report_files import HOSTILE, make_file, wait_until

import egoaudio
from egoaudio.reporting.names import clean


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page of a file")
    make_file(folder / "<b>ego&.h5", num_videos=12, failed=(1, 2))
    egoaudio.report(folder / "<b>ego&.h5", output=folder / "page.html")
    return folder / "page.html"


def test_a_page_allows_nothing_but_its_own_script(visit, page_path):
    page = visit(page_path)
    policy = page.locator("meta[http-equiv='Content-Security-Policy']").get_attribute("content")
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "http" not in policy
    assert page.title() == "Report on <b>ego&.h5"
    assert page.locator("h1 b").count() == 0


def test_names_of_strangers_stay_text(visit, page_path):
    page = visit(page_path)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    classes = page.locator("#classes-table tbody th").all_text_contents()
    for number, name in enumerate(HOSTILE[:4]):
        assert f"c{number:03d} {clean(name)}" in classes
    shown = page.locator("main").inner_text()
    for name in (HOSTILE[1], HOSTILE[2]):  # ids and reasons of the videos that failed
        assert shown.count(clean(name)) >= 2
    assert page.locator("img:not([src^='data:'])").count() == 0
    assert page.locator("script:not([type='application/json'])").count() == 1


def test_a_clip_is_heard_and_a_click_on_its_picture_moves_the_time(visit, page_path):
    page = visit(page_path)
    card = page.locator(".clip[data-sound]").first
    button = card.locator(".play")
    button.focus()
    page.keyboard.press("Enter")
    wait_until(page, "document.getElementById('player').currentTime > 0.1")
    assert button.get_attribute("aria-pressed") == "true" and card.locator(".cursor").count() == 1
    assert page.evaluate("document.getElementById('player').duration") == pytest.approx(1, abs=0.05)
    page.keyboard.press("Escape")
    assert page.evaluate("document.getElementById('player').paused")
    assert button.get_attribute("aria-pressed") == "false" and card.locator(".cursor").count() == 0
    box = card.locator("img").bounding_box()
    card.locator("img").click(position={"x": 0.8 * box["width"], "y": 10})
    wait_until(page, "document.getElementById('player').currentTime >= 0.75")
    wait_until(page, "document.getElementById('player').ended")
    assert card.locator(".cursor").count() == 0


def test_a_table_is_sorted_and_searched(visit, page_path):
    page = visit(page_path)
    table = page.locator("#classes-table")

    def column(number):
        return [int(cell) for cell in table.locator(f"tbody tr td:nth-child({number})").all_text_contents()]

    clips = column(2)
    assert clips == sorted(clips, reverse=True)
    table.get_by_role("button", name="clips").click()
    assert column(2) == sorted(clips)
    assert table.locator("th[aria-sort='ascending']").inner_text().strip() == "clips"
    table.get_by_role("button", name="clips").click()
    assert column(2) == clips
    table.get_by_role("button", name="class").click()
    names = table.locator("tbody th").all_text_contents()
    assert names == sorted(names) and len(names) == 5
    page.get_by_label("Search classes").first.fill("C002")
    assert table.locator("tbody tr:visible").count() == 1
    assert page.locator("#classes-table-found").inner_text() == "1 of 5 found"


@pytest.mark.parametrize("width, scheme", [(1400, "light"), (400, "dark")])
def test_a_page_fits_its_window(visit, page_path, width, scheme):
    page = visit(page_path, width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_page_can_be_read_without_its_script(visit, page_path):
    page = visit(page_path, java_script_enabled=False)
    assert "Samples per class" in page.locator("main").inner_text()
    assert page.locator(".play:visible, input:visible").count() == 0
    assert page.locator("noscript").count() == 1
