"""The page in a real browser, as a person uses it, on the demonstration's photos."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from photo_collection import CAT, collection, photo
from PIL import Image, ImageEnhance
from skimage import data

pytest.importorskip("fastapi", reason="pip install 'cwf-milvus[serve]'")
pytest.importorskip("playwright", reason="pip install 'cwf-milvus[test]'")
from axe_playwright_python.sync_playwright import Axe
from browser import (
    answered,
    chromium,
    draw,
    drop,
    framed,
    names,
    numbers,
    on_screen,
    opened,
    overlap,
    paste,
    until,
)
from playwright.sync_api import Browser, Page, expect
from web_service import served

BOX = tuple(CAT)
IN_CHINA = (288, 192, 497, 405)  # where write_photos puts the cat in chelsea-in-china.jpg
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    with (
        collection(folder / "photos.db") as made,
        served({"photos": made, "again": made}, folder, writable=True) as client,
    ):
        yield str(client.base_url).rstrip("/")


@pytest.fixture(scope="module")
def query(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cat's photo, but brighter and compressed: no stored photo has its pixels."""
    file = tmp_path_factory.mktemp("query") / "my cat.jpg"
    with Image.open(photo("chelsea.png")) as opened:
        ImageEnhance.Brightness(opened.convert("RGB")).enhance(1.2).save(file, quality=85)
    return file


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with opened(browser, address, viewport={"width": 1280, "height": 860}) as page:
        yield page


@pytest.fixture
def visit(browser: Browser, address: str) -> Any:
    return partial(opened, browser, address)


def search_for_cat(page: Page, query: Path) -> None:
    drop(page, query, "image/jpeg")
    answered(page)
    draw(page, BOX)
    page.wait_for_url("**box=**")
    answered(page)


def test_a_box_drawn_on_a_dropped_photo_finds_the_thing_and_frames_it(
    page: Page, query: Path
) -> None:
    search_for_cat(page, query)
    assert numbers(page) == pytest.approx(BOX, abs=2)
    assert "chelsea" in names(page)[0]
    corners, kind = framed(page, names(page).index("chelsea.png"))
    assert kind == "polygon"
    assert overlap(corners, BOX) > 0.9
    corners, _ = framed(page, names(page).index("chelsea-in-china.jpg"))
    assert overlap(corners, IN_CHINA) > 0.5
    expect(page.locator("#hits .certainty").first).to_contain_text("almost certainly")
    expect(page.locator("#hits .certainty").first).to_contain_text("100 %")
    expect(page.locator("#absent")).to_be_hidden()


def test_several_boxes_need_the_photo_sent_once_and_a_new_one_cancels_the_search(
    page: Page, query: Path
) -> None:
    sent: list[str] = []
    unanswered: list[Any] = []
    page.on("request", lambda one: one.method == "POST" and sent.append(urlsplit(one.url).path))
    drop(page, query, "image/jpeg")
    answered(page)
    page.route("**/api/search?*", lambda route: unanswered.append(route), times=1)
    draw(page, (200, 20, 440, 280))
    until(lambda: page.evaluate("1") and unanswered)
    draw(page, BOX)
    answered(page)
    assert sent == ["/api/queries", *["/api/search"] * 3]
    assert unanswered[0].request.failure == "net::ERR_ABORTED"
    assert numbers(page) == pytest.approx(BOX, abs=2)
    assert "chelsea" in names(page)[0]


def test_handles_and_fields_move_the_box_by_keyboard(page: Page, query: Path) -> None:
    drop(page, query, "image/jpeg")
    answered(page)
    assert numbers(page) == [0, 0, 451, 300]
    assert page.locator("#stage .handle").count() == 8
    page.locator(".handle.nw").focus()
    for key in ("Control+ArrowRight", "Shift+ArrowLeft", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    assert numbers(page) == [91, 1, 451, 300]
    page.keyboard.press("Tab")  # the top side, which only goes up and down
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    assert numbers(page) == [91, 11, 451, 300]
    page.locator("#numbers input[name=right]").fill("355")
    page.keyboard.press("Enter")
    page.wait_for_url("**box=91%2C11%2C355%2C300")
    answered(page)
    assert "chelsea" in names(page)[0]
    page.keyboard.press("Escape")
    assert numbers(page) == [0, 0, 451, 300]
    assert "box=" not in page.url
    answered(page)


def test_a_finger_draws_a_box_on_a_phone(visit: Any, query: Path) -> None:
    with visit(**PHONE) as page:
        drop(page, query, "image/jpeg")
        answered(page)
        finger = page.context.new_cdp_session(page)

        def touch(kind: str, *place: float) -> None:
            points = [{"x": place[0], "y": place[1]}] if place else []
            finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        page.locator("#stage").scroll_into_view_if_needed()
        touch("touchStart", *on_screen(page, *BOX[:2]))
        touch("touchMove", *on_screen(page, 200, 150))
        touch("touchMove", *on_screen(page, *BOX[2:]))
        touch("touchEnd")
        page.wait_for_url("**box=**")
        answered(page)
        assert numbers(page) == pytest.approx(BOX, abs=3)
        assert "chelsea" in names(page)[0]
        wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide == [360, 360]


def test_the_box_is_in_the_pixels_of_a_photo_that_its_exif_turns(
    page: Page, query: Path, tmp_path: Path
) -> None:
    turned = tmp_path / "turned.jpg"
    with Image.open(query) as photo_:
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
        photo_.rotate(90, expand=True).resize((1200, 1804)).save(turned, exif=exif)
    drop(page, turned, "image/jpeg")
    answered(page)
    assert numbers(page) == [0, 0, 1804, 1200]
    draw(page, (360, 20, 1420, 1100))
    answered(page)
    assert numbers(page) == pytest.approx([360, 20, 1420, 1100], abs=5)
    assert "chelsea" in names(page)[0]


def test_a_thing_that_is_not_there_is_said_not_to_be(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "coins.png"
    Image.fromarray(data.coins()).save(file)
    paste(page, file)
    answered(page)
    expect(page.locator("#absent")).to_contain_text("Probably not here. These are the nearest.")
    expect(page.locator("#hits .certainty").first).to_contain_text("probably not")


def test_hits_are_on_the_screen_before_the_final_ones(page: Page, query: Path) -> None:
    page.evaluate("""() => {
      window.told = [];
      const words = document.getElementById("progress");
      const count = () => document.querySelectorAll("#hits li").length;
      const note = () => told.push([words.textContent, count()]);
      new MutationObserver(note).observe(words, { childList: true });
    }""")
    drop(page, query, "image/jpeg")
    answered(page)
    told = page.evaluate("told")
    early = [count for words, count in told if "looking closer" in words]
    assert len(early) == 1
    assert early[0] > 3


def test_a_filter_narrows_the_answer_and_a_wrong_one_says_what_milvus_says(
    page: Page, query: Path
) -> None:
    search_for_cat(page, query)
    page.locator("#fields button", has_text="place").click()
    expect(page.locator("#filter")).to_have_value("place == 0")
    page.locator("#filter").fill("place < 3")
    page.keyboard.press("Enter")
    page.wait_for_url("**filter=place**")
    answered(page)
    assert len(names(page)) == 3
    expect(page.locator("#hits .few").first).to_contain_text("place")
    page.locator("#filter").fill("place = 3")
    page.keyboard.press("Enter")
    expect(page.locator("#filter-failure")).to_contain_text("Milvus refused the filter 'place = 3'")
    expect(page.locator("#filter")).to_have_attribute("aria-invalid", "true")


def test_the_slider_leaves_those_that_are_as_certain(page: Page, query: Path) -> None:
    search_for_cat(page, query)
    before = len(names(page))
    page.locator("#certainty").focus()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    page.wait_for_url("**certainty=60")
    answered(page)
    assert 0 < len(names(page)) < before
    assert all("chelsea" in name for name in names(page))


def test_the_large_view_shows_query_and_hit_with_their_points_joined(
    page: Page, query: Path
) -> None:
    search_for_cat(page, query)
    page.locator("#hits button").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    dialog = page.locator("#detail")
    expect(dialog.locator(".verdict")).to_contain_text("points agree with the box")
    assert dialog.locator(".pair image").count() == 2
    assert 8 < dialog.locator(".pair line:not(.casing)").count() <= 40
    expect(dialog.locator("caption")).to_contain_text("moved")
    assert dialog.locator("tbody th").all_text_contents() == ["descriptor", "regions", "spatial"]
    first = page.locator("#detail-name").text_content()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#detail-name")).not_to_have_text(first or "")
    original = dialog.get_by_role("link", name="Open the original").get_attribute("href")
    assert page.request.get(original or "").headers["content-type"].startswith("image/")
    dialog.locator("summary").click()
    expect(dialog.locator("details img")).to_be_visible(timeout=20_000)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert "photo=" not in page.url
    expect(page.locator("#hits button").first).to_be_focused()


def test_a_stored_photo_is_searched_with_and_steered_by_more_like_this_and_not_this(
    page: Page,
) -> None:
    page.locator("#stored-photos button").first.click()
    answered(page)
    expect(page.locator("#query-name")).to_contain_text("camera.png")
    page.goto("/?" + "view=browse")
    page.locator("#photos button", has_text="chelsea-crop.jpg").click()
    page.get_by_role("button", name="More like this").click()
    answered(page)
    expect(page.locator("#like .name")).to_have_text("chelsea-crop.jpg")
    unwanted = names(page)[0]
    assert "chelsea" in unwanted
    page.locator("#hits button").first.click()
    page.get_by_role("button", name="Not this").click()
    expect(page.locator("#unlike .name")).to_have_text(unwanted)
    answered(page)
    assert unwanted not in names(page)
    page.get_by_role("button", name=f"Leave out {unwanted}").click()
    answered(page)
    assert unwanted in names(page)


def test_not_this_leaves_a_hit_out_of_the_answer_to_a_photo_that_was_sent(
    page: Page, query: Path
) -> None:
    search_for_cat(page, query)
    unwanted = names(page)[1]
    page.locator("#hits button").nth(1).click()
    page.get_by_role("button", name="Not this").click()
    answered(page)
    assert unwanted not in names(page)
    assert "chelsea" in names(page)[0]


def test_back_reload_and_a_shared_address_show_what_was_there(
    page: Page, query: Path, visit: Any
) -> None:
    search_for_cat(page, query)
    page.locator("#hits button").nth(1).click()
    name = page.locator("#detail-name").text_content()
    with visit() as other:  # somebody else opens the address
        other.goto(page.url)
        expect(other.locator("#detail-name")).to_have_text(name or "")
        expect(other.locator("#detail .pair")).to_be_visible(timeout=20_000)
    page.go_back()
    expect(page.locator("#detail")).to_be_hidden()
    page.go_back()  # before the box was drawn
    assert "box=" not in page.url
    answered(page)
    assert numbers(page) == [0, 0, 451, 300]
    page.go_forward()
    answered(page)
    page.reload()
    answered(page)
    assert numbers(page) == pytest.approx(BOX, abs=2)
    assert "chelsea" in names(page)[0]


def test_photos_are_browsed_by_folder_and_field(page: Page) -> None:
    page.locator("#to-browse").click()
    expect(page.locator("#photos img").first).to_be_visible()
    page.locator("#by").select_option("place")
    page.locator("#group").select_option(label="0 (1)")
    expect(page.locator("#photos li")).to_have_count(1)
    page.locator("#by").select_option("folder")
    until(lambda: page.locator("#group option").count() == 2)
    page.locator("#to-about").click()
    expect(page.locator("#numbers-of-info")).to_contain_text("FLAT")
    page.locator("#to-alike").click()
    expect(page.locator("#alike-words")).to_have_text("There are none.")
    expect(page.locator("#no-graph")).to_be_visible()


def test_a_phone_takes_a_photo_and_a_desk_has_no_such_button(
    visit: Any, page: Page, query: Path
) -> None:
    assert page.locator(".on-phones").is_hidden()
    with visit(**PHONE) as phone:
        expect(phone.locator(".on-phones")).to_be_visible()
        camera = phone.locator("#camera")
        assert camera.get_attribute("capture") == "environment"  # the camera at the back
        camera.set_input_files(query)
        answered(phone)
        assert "chelsea" in names(phone)[0]


def test_the_path_of_a_photo_is_copied_or_said_not_to_be(page: Page, address: str) -> None:
    page.goto("/?view=browse")
    page.locator("#photos button", has_text="chelsea-crop.jpg").click()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
    page.get_by_role("button", name="Copy its path").click()
    expect(page.locator("#detail .actions [role=status]")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == photo("chelsea-crop.jpg")
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(Error('no')); }")
    page.get_by_role("button", name="Copy its path").click()
    expect(page.locator("#detail .actions [role=status]")).to_contain_text("does not let it")


def test_photos_are_browsed_by_the_day_they_were_taken(browser: Browser, tmp_path: Path) -> None:
    with collection(tmp_path / "dated.db", 3) as made:
        days = ["2024-05-01T09:30:00+02:00", "2024-05-01T23:59:59", "2023-12-24T18:00:00"]
        taken = dict(zip(sorted(made.uris()), days, strict=True))
        made.set_metadata({uri: {"exif_date": day} for uri, day in taken.items()})
        with (
            served({"photos": made}, tmp_path) as client,
            opened(browser, str(client.base_url).rstrip("/")) as page,
        ):
            page.locator("#to-browse").click()
            page.locator("#by").select_option("date")
            page.locator("#group").select_option(label="2024-05-01 (2)")
            expect(page.locator("#photos li")).to_have_count(2)
            page.locator("#group").select_option(label="2023-12-24 (1)")
            expect(page.locator("#photos li")).to_have_count(1)


def test_more_hits_come_with_scrolling(page: Page, query: Path) -> None:
    def few(route: Any) -> None:
        route.continue_(post_data=json.dumps({**route.request.post_data_json, "limit": 6}))

    page.route("**/api/search?*", few)
    drop(page, query, "image/jpeg")
    n = int((page.locator("#count").text_content() or "").split()[0])

    def all_are_there() -> bool:
        page.evaluate("() => { scrollTo(0, 1e6); }")
        return f"{n} photos" in (page.locator("#progress").text_content() or "")

    until(all_are_there)
    labels = page.locator("#hits button").evaluate_all("all => all.map((one) => one.ariaLabel)")
    ranks = [int(label.partition(".")[0]) for label in labels]
    assert ranks == list(range(ranks[0], n + 1))


def test_another_collection_is_chosen(page: Page) -> None:
    page.locator("#stored-photos button").first.click()
    answered(page)
    page.locator("#collection").select_option("again")
    page.wait_for_url("**collection=again")
    expect(page.locator("#start")).to_be_visible()
    page.go_back()
    answered(page)
    expect(page.locator("#collection")).to_have_value("photos")


def test_an_address_is_fetched_by_the_service_where_it_may(page: Page, query: Path) -> None:
    expect(page.locator("#url-form")).to_be_hidden()
    one = {"name": "photos", "photos": 9, "writable": False, "urls": True, "graph": False}
    page.route("**/api/collections*", lambda route: route.fulfill(body=json.dumps([one])))
    page.reload()
    expect(page.locator("#add-label")).to_be_hidden()
    refused: list[Any] = []
    page.on("request", lambda sent: "queries" in sent.url and refused.append(sent.post_data_json))
    page.locator("#url").fill("https://example.org/cat.jpg")
    page.keyboard.press("Enter")
    expect(page.locator("#asking-words")).to_contain_text("urls are not fetched here")
    assert refused == [{"url": "https://example.org/cat.jpg"}]


def test_photos_are_added_and_are_there(page: Page, query: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    page.locator("#to-browse").click()
    before = int((page.locator("#count").text_content() or "").split()[0])
    page.locator("#add").set_input_files([query, broken])
    expect(page.locator("#add-words")).to_have_text("2 of 2: 1 added, 1 failed", timeout=30_000)
    expect(page.locator("#add-list")).to_contain_text("broken.jpg")
    expect(page.locator("#count")).to_have_text(f"{before + 1} photos")


def of_100_000(page: Page, name: str) -> None:
    """Have the service tell of 100,000 photos, each with a name like this."""

    def some(route: Any) -> None:
        asked = parse_qs(urlsplit(route.request.url).query)
        after = int(asked.get("after", ["0"])[0])
        photos = [
            {"uri": str(n), "name": f"{name}{n}.jpg", "width": 4, "height": 3, "fields": {}}
            for n in range(after, after + 100)
        ]
        last = str(after + 100) if after + 100 < 100_000 else None
        route.fulfill(body=json.dumps({"photos": photos, "after": last}))

    page.route("**/api/photos?*", some)
    page.route("**/api/thumbnail?*", lambda route: route.fulfill(path=photo("camera.png")))


def test_the_document_holds_what_is_on_the_screen_of_100_000_photos(page: Page) -> None:
    of_100_000(page, "photo-")
    page.locator("#to-browse").click()
    expect(page.locator("#photos .name").first).to_have_text("photo-0.jpg")

    def is_far_down() -> bool:
        page.evaluate("() => { scrollTo(0, document.body.scrollHeight); }")
        page.wait_for_timeout(60)
        shown = page.locator("#photos .name").all_text_contents()
        return bool(shown) and int(shown[-1][len("photo-") : -len(".jpg")]) > 1000

    until(is_far_down, 60)
    assert page.locator("#photos li").count() < 80
    page.evaluate("scrollTo(0, 0)")  # pages that were let go come again
    expect(page.locator("#photos .name").first).to_have_text("photo-0.jpg")


@pytest.mark.parametrize("name", ["صورة-القطة-في-الحديقة-", "a" * 300])
def test_right_to_left_and_long_names_break_nothing(visit: Any, name: str) -> None:
    with visit(**PHONE) as page:
        of_100_000(page, name)
        page.goto("/?view=browse")
        expect(page.locator("#photos .name").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        inside = page.locator("#photos .card").evaluate_all("""cards => cards.every((card) =>
          card.scrollWidth <= card.offsetWidth && card.scrollHeight <= card.offsetHeight)""")
        assert inside
        page.evaluate("document.documentElement.dir = 'rtl'")
        assert page.evaluate("document.documentElement.scrollWidth") == 360


def serious(page: Page) -> list[str]:
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    found = Axe().run(page, options={"runOnly": tags}).response["violations"]
    return [
        f"{one['id']}: {node['html'][:120]} {node['failureSummary'][:300]}"
        for one in found
        for node in one["nodes"]
    ]


@pytest.mark.parametrize(("scheme", "size"), [("light", (1280, 860)), ("dark", (360, 740))])
def test_axe_finds_nothing_wrong(
    visit: Any, query: Path, scheme: str, size: tuple[int, int]
) -> None:
    shape = {"width": size[0], "height": size[1]}
    with visit(color_scheme=scheme, viewport=shape) as page:
        assert serious(page) == []
        search_for_cat(page, query)
        assert serious(page) == []
        page.locator("#hits button").first.click()
        expect(page.locator(".verdict")).to_be_visible()
        assert serious(page) == []
        page.keyboard.press("Escape")
        for view in ("browse", "alike", "about"):
            page.locator(f"#to-{view}").click()
            page.wait_for_load_state("networkidle")
            assert serious(page) == []
