"""Chromium over the service, as a person meets the page."""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_DROP = """([bytes, name, type]) => {
  const data = new DataTransfer();
  const file = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
  data.items.add(new File([file], name, { type }));
  for (const kind of ["dragover", "drop"]) {
    const event = new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
    document.getElementById("main").dispatchEvent(event);
  }
}"""
_PASTE = """([bytes, name, type]) => {
  const data = new DataTransfer();
  const file = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
  data.items.add(new File([file], name, { type }));
  const event = new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
  document.body.dispatchEvent(event);
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's headless Chromium; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        # As root, as in a container, Chromium has no sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, address: str, **context: Any) -> Iterator[Page]:
    """The page, which must neither complain nor ask another host for anything."""
    wrong: list[str] = []
    with browser.new_context(base_url=address, **context) as place:
        page = place.new_page()
        page.on("console", lambda told: told.type == "error" and wrong.append(told.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda sent: sent.url.startswith((address, "data:", "blob:")) or wrong.append(sent.url),
        )
        page.goto("/")
        expect(page.locator("#count")).not_to_be_empty()
        yield page
        page.wait_for_load_state()
        # What a person typed wrongly, Chromium reports like an error of the page.
        refused = "Failed to load resource: the server responded with a status of 4"
        assert [words for words in wrong if not words.startswith(refused)] == []


def drop(page: Page, file: Path, kind: str = "image/png") -> None:
    """Let a file go over the page."""
    page.evaluate(_DROP, [base64.b64encode(file.read_bytes()).decode(), file.name, kind])


def paste(page: Page, file: Path, kind: str = "image/png") -> None:
    """Paste a file from the clipboard."""
    page.evaluate(_PASTE, [base64.b64encode(file.read_bytes()).decode(), file.name, kind])


def answered(page: Page) -> None:
    """Wait for the final hits of what the page shows as asked."""
    expect(page.locator("#progress")).to_contain_text("in ", timeout=30_000)
    expect(page.locator("#answer")).not_to_have_attribute("aria-busy", "true", timeout=30_000)


def on_screen(page: Page, x: float, y: float) -> tuple[float, float]:
    """Where on the screen a pixel of the query photo is."""
    box = page.locator("#stage").bounding_box()
    assert box is not None
    width, height = (int(page.locator(f"#numbers input[name={side}]").get_attribute("max") or 0)
                     for side in ("right", "bottom"))  # fmt: skip
    return box["x"] + x / width * box["width"], box["y"] + y / height * box["height"]


def draw(page: Page, box: tuple[float, float, float, float]) -> None:
    """Draw a box with the mouse."""
    page.mouse.move(*on_screen(page, *box[:2]))
    page.mouse.down()
    page.mouse.move(*on_screen(page, *(np.add(box[:2], box[2:]) / 2)))
    page.mouse.move(*on_screen(page, *box[2:]))
    page.mouse.up()


def numbers(page: Page) -> list[int]:
    """The box as its four fields say."""
    return [int(field.input_value()) for field in page.locator("#numbers input").all()]


def names(page: Page) -> list[str]:
    """The names of the hits on the screen, in their order."""
    return page.locator("#hits .name").all_text_contents()


def framed(page: Page, index: int) -> tuple[np.ndarray, str]:
    """The frame drawn on a hit, as corners in its pixels (N, 2), and "polygon" or "rect"."""
    line = page.locator("#hits li").nth(index).locator(".frame .line")
    kind: str = line.evaluate("line => line.tagName")
    if kind == "polygon":
        corners = [pair.split(",") for pair in (line.get_attribute("points") or "").split()]
        return np.array(corners, float), kind
    x, y, w, h = (float(line.get_attribute(name) or 0) for name in ("x", "y", "width", "height"))
    return np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)]), kind


def overlap(corners: np.ndarray, box: tuple[float, float, float, float]) -> float:
    """Intersection over union of a polygon and a box, by their pixels."""
    size = (1200, 1200)
    masks = []
    for shape in (
        corners,
        [(box[0], box[1]), (box[2], box[1]), (box[2], box[3]), (box[0], box[3])],
    ):
        mask = Image.new("1", size)
        ImageDraw.Draw(mask).polygon([tuple(map(float, corner)) for corner in shape], fill=1)
        masks.append(np.asarray(mask))
    return float((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())


def until(happens: Any, seconds: float = 10) -> None:
    """Wait for something that no element shows."""
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.05)
