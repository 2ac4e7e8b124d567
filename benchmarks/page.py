"""The page in Chromium: seconds from dropping a photo to framed hits, and how it looks.

cwf-milvus demo --folder demo
python benchmarks/page.py demo/photos.db demo demo/photos/coffee.png --box 80,14,478,390 \
    --screenshots screenshots/
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright
from service import served

_WIDTHS = {360: 740, 768: 1024, 1440: 900}  # and the heights of such screens
_VIEWS = {
    "browse": "#photos img",
    "alike": "#alike-photos img, #alike-words:text('none')",
    "about": "#numbers-of-info dd",
}
_LOADED = "Promise.all([...document.images].map((image) => image.decode().catch(() => {})))"
_TIMED = """() => {
  const seen = (window.seen = {});
  document.getElementById("choose").addEventListener("change", () => {
    seen.start = performance.now();
    seen.first = seen.last = 0;
  }, true);
  const look = () => {
    if (!seen.start || !document.querySelector("#hits .frame")) return;
    seen.first ||= performance.now();
    const words = document.getElementById("progress").textContent;
    if (/, in /.test(words)) seen.last ||= performance.now();
  };
  new MutationObserver(look).observe(document.getElementById("answer"), {
    subtree: true, childList: true, characterData: true,
  });
}"""


def timed(page: Page, photo: Path) -> tuple[float, float]:
    """Drop a photo on a page with nothing on it: seconds to the first and the last framed hits."""
    page.goto("/")
    page.wait_for_selector("#stored-photos img")
    page.evaluate(_TIMED)
    page.set_input_files("#choose", photo)
    page.wait_for_selector("#answer:not([aria-busy]) .frame")
    first, last = page.evaluate("[seen.first - seen.start, seen.last - seen.start]")
    return first / 1000, last / 1000


def draw(page: Page, box: Sequence[float]) -> None:
    """Draw a box with the mouse."""
    stage = page.locator("#stage").bounding_box()
    width, height = (
        int(page.locator(f"#numbers input[name={side}]").get_attribute("max") or 0)
        for side in ("right", "bottom")
    )
    assert stage is not None
    across, down = stage["width"] / width, stage["height"] / height
    page.mouse.move(stage["x"] + box[0] * across, stage["y"] + box[1] * down)
    page.mouse.down()
    page.mouse.move(stage["x"] + box[2] * across, stage["y"] + box[3] * down, steps=3)
    page.mouse.up()


def photograph(browser: Browser, address: str, photo: Path, box: str, folder: Path) -> None:
    """Write pictures of each view at each width, light and dark."""
    folder.mkdir(parents=True, exist_ok=True)
    for width, height in _WIDTHS.items():
        for scheme in ("light", "dark"):
            with browser.new_context(
                base_url=address,
                viewport={"width": width, "height": height},
                color_scheme=scheme,
                has_touch=width < 768,
            ) as context:
                page = context.new_page()

                def shoot(view: str, page: Page = page, end: str = f"{width}-{scheme}") -> None:
                    page.evaluate(_LOADED)
                    file = folder / f"{view}-{end}.jpg"
                    page.screenshot(path=file, type="jpeg", quality=82)

                page.goto("/")
                page.wait_for_selector("#stored-photos img")
                shoot("start")
                page.set_input_files("#choose", photo)
                page.wait_for_selector("#answer:not([aria-busy]) .frame")
                draw(page, [float(side) for side in box.split(",")])
                page.wait_for_url("**box=**")
                page.wait_for_selector("#answer:not([aria-busy]) .frame")
                page.mouse.move(0, 0)
                shoot("search")
                page.locator("#hits button").nth(1).click()
                page.wait_for_selector(".verdict")
                shoot("detail")
                page.keyboard.press("Escape")
                for view, ready in _VIEWS.items():
                    page.click(f"#to-{view}")
                    page.wait_for_selector(ready)
                    shoot(view)


def main() -> None:
    """Measure, and take pictures where a folder is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("uri")
    parser.add_argument("collection")
    parser.add_argument("photos", nargs="+", type=Path, help="query photos")
    parser.add_argument("--box", help="on the first of them, for the pictures")
    parser.add_argument("--screenshots", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    with served(arguments.uri, arguments.collection) as client, sync_playwright() as playwright:
        address = str(client.base_url).rstrip("/")
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(base_url=address)
        for photo in arguments.photos[:2]:
            timed(page, photo)  # the first ones warm everything up
        times = [timed(page, photo) for photo in arguments.photos]
        first, last = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"dropped to first hits {first:.2f} s, to final ones {last:.2f} s ({len(times)})")
        if arguments.screenshots and arguments.box:
            photograph(browser, address, arguments.photos[0], arguments.box, arguments.screenshots)
        browser.close()


if __name__ == "__main__":
    main()
