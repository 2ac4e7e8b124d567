from __future__ import annotations

import base64
import io
import re
import resource
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import skimage.data

from cwf_milvus.answers import page
from cwf_milvus.answers.answer import Hits
from cwf_milvus.answers.drawing import BOX_COLOUR
from cwf_milvus.answers.hits import Hit, Query, StageScore
from cwf_milvus.answers.page import hits_fragment, save_page
from cwf_milvus.encode.encoding import Encoding
from cwf_milvus.errors import SettingsError
from cwf_milvus.photos.box import Box
from cwf_milvus.photos.images import load_image

PHOTOS = Path(skimage.data.__file__).parent
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\n</style>--><!--&lt;\x00\u202e"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """What a browser makes of a page: elements in order, their attributes and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.comments: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    @property
    def text(self) -> str:
        return "".join(data for tag, data in self.texts if tag != "style")

    @property
    def shape(self) -> list[tuple[str, list[str]]]:
        return [(tag, sorted(attributes)) for tag, attributes in self.elements]

    @property
    def images(self) -> list[dict[str, str]]:
        return [{k: v or "" for k, v in a.items()} for tag, a in self.elements if tag == "img"]


def picture(attributes: dict[str, str]) -> PIL.Image.Image:
    kind, _, data = attributes["src"].partition(",")
    assert kind == "data:image/jpeg;base64"
    return PIL.Image.open(io.BytesIO(base64.b64decode(data)))


def encoding() -> Encoding:
    vectors = np.zeros((1, 4), np.float32)
    ids = np.zeros(1, np.int64)
    return Encoding(vectors[0], ids, vectors[0, :1], vectors, vectors, vectors, "q", "0", 1, 1)


def query(name: str = "chelsea.png", box: Box | None = None) -> Query:
    return Query(encoding(), name, load_image(PHOTOS / "chelsea.png"), box)


def hit(uri: str | Path, **fields: Any) -> Hit:
    return Hit(str(uri), fields.pop("score", 0.5), **fields)


def saved(tmp_path: Path, *results: Hits) -> Page:
    shown = [(hits.query, hits, hits.found) for hits in results]
    return Page(save_page(shown, tmp_path / "hits.html").read_text(encoding="utf-8"))


def is_colour(pixel: Any, colour: str = BOX_COLOUR) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool(np.abs(np.asarray(pixel, float) - wanted).max() < 60)


# The page


def test_a_page_shows_rank_score_classes_metadata_note_and_stages_of_each_hit(tmp_path):
    stages = (StageScore("descriptor", 0.25, 7), StageScore("regions", 0.875, 1))
    hits = Hits(
        query(),
        [
            hit(
                PHOTOS / "coffee.png",
                score=0.875,
                classes=("espresso", "cup"),
                metadata={"place": "Zürich", "year": 2019, "tags": ["a", "b"]},
                stages=stages,
                note="read again in vain",
            ),
            hit(PHOTOS / "rocket.jpg", score=0.125),
        ],
    )
    shown = saved(tmp_path, hits)
    texts = [data for _, data in shown.texts]
    for expected in (
        *("chelsea.png", "2 hits", "1", "coffee.png", "score 0.8750", "espresso", "cup"),
        *("place", "Zürich", "2019", '["a", "b"]', "read again in vain"),
        *("descriptor", "0.2500", "7", "regions", "2", "rocket.jpg", "score 0.1250"),
    ):
        assert expected in texts
    assert "#7 → #1" in shown.text
    assert [tag for tag, _ in shown.elements].count("details") == 1
    assert str(PHOTOS / "coffee.png") in texts


def test_a_page_loads_and_runs_nothing(tmp_path):
    hits = Hits(query(box=Box(10, 10, 100, 100)), [hit(PHOTOS / "coffee.png")])
    shown = saved(tmp_path, hits)
    tags = {tag for tag, _ in shown.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "a", "base", "svg", "form"}
    for _, attributes in shown.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "href"]
        assert str(attributes.get("src", "data:image/jpeg,")).startswith("data:image/jpeg")
    style = "".join(data for tag, data in shown.texts if tag == "style")
    assert style
    assert "url(" not in style
    assert "@import" not in style
    policy = [a["content"] for _, a in shown.elements if "http-equiv" in a]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_every_picture_has_a_text_for_those_who_do_not_see_it(tmp_path):
    hits = Hits(
        query(box=Box(120, 20, 330, 280)),
        [hit(PHOTOS / "coffee.png", box=Box(1, 2, 300, 400)), hit(PHOTOS / "rocket.jpg")],
    )
    shown = saved(tmp_path, hits)
    assert [image["alt"] for image in shown.images] == [
        "The query, chelsea.png, with the box 120, 20, 330, 280",
        "Hit 1, coffee.png, with the box 1, 2, 300, 400",
        "Hit 2, rocket.jpg",
    ]
    attributes = dict(shown.elements)
    assert attributes["html"] == {"lang": "en"}
    assert ("title", "Hits for chelsea.png") in shown.texts


def test_pictures_are_thumbnails_of_the_photos_themselves(tmp_path):
    hits = Hits(query(), [hit(PHOTOS / "hubble_deep_field.jpg"), hit(PHOTOS / "coffee.png")])
    _, hubble, coffee = map(picture, saved(tmp_path, hits).images)
    assert (max(hubble.size), coffee.size) == (360, (360, 240))
    original = PIL.Image.open(PHOTOS / "coffee.png").convert("RGB").resize((360, 240))
    assert np.abs(np.asarray(original, float) - np.asarray(coffee, float)).mean() < 5


def test_the_matched_box_is_drawn_where_it_is_in_the_hits_own_pixels(tmp_path):
    source = load_image(PHOTOS / "hubble_deep_field.jpg")  # 1000 x 872, decoded at half its size
    box = Box(250, 218, 750, 654)
    found = hit(source.uri, width=source.width, height=source.height, box=box)
    shown = np.asarray(picture(saved(tmp_path, Hits(query(), [found])).images[1]))
    height, width = shown.shape[:2]
    left, top, right, bottom = (
        round(v) for v in (width / 4, height / 4, width * 0.75, height * 0.75)
    )
    middle_x, middle_y = width // 2, height // 2
    for x, y in (
        (left + 2, middle_y),
        (right - 3, middle_y),
        (middle_x, top + 2),
        (middle_x, bottom - 3),
    ):
        assert is_colour(shown[y, x])
    for x, y in ((left - 8, middle_y), (left + 12, middle_y), (middle_x, top - 8), (10, 10)):
        assert not is_colour(shown[y, x])


def verified(**fields: Any) -> Hit:
    points = np.array([[20, 20, 30, 40], [200, 100, 210, 120], [300, 250, 310, 270]], np.float32)
    corners = ((100.0, 100.0), (300.0, 100.0), (300.0, 200.0), (100.0, 200.0))
    about = {
        "width": 451,
        "height": 300,
        "box": Box(100, 100, 300, 200),
        "framed_by": "keypoints",
        "polygon": corners,
        "inliers": 3,
        "points": points,
    }
    return hit(PHOTOS / "chelsea.png", **{**about, **fields})


def test_matched_points_are_joined_by_lines_between_query_and_hit(tmp_path):
    page_ = saved(tmp_path, Hits(query(), [verified()]))
    assert "3 points agree" in page_.text
    pair = picture(page_.images[-1])
    assert pair.width > 1.9 * picture(page_.images[1]).width
    assert "beside the hit" in page_.images[-1]["alt"]
    plain = saved(tmp_path, Hits(query(), [verified(points=None, polygon=None, inliers=0)]))
    assert len(plain.images) == 2
    assert "No points agree" in plain.text


def test_a_region_is_dashed_and_what_was_verified_is_framed_solidly(tmp_path):
    page_ = saved(
        tmp_path,
        Hits(
            query(),
            [verified(), verified(framed_by="region", polygon=None, points=None, inliers=0)],
        ),
    )
    shares = []
    for shown in (page_.images[1], page_.images[-1]):
        small = picture(shown).convert("RGB")
        y = round(100 * small.height / 300)
        xs = range(round(110 * small.width / 451), round(290 * small.width / 451))
        shares.append(np.mean([is_colour(small.getpixel((x, y))) for x in xs]))
    assert shares[0] > 0.9
    assert 0.3 < shares[1] < 0.8


def test_a_query_without_a_photo_has_its_matched_points_counted_alone(tmp_path):
    bare = Query(encoding(), "like a.jpg")
    page_ = saved(tmp_path, Hits(bare, [verified()]))
    assert "3 points agree" in page_.text
    assert len(page_.images) == 1


def test_the_querys_box_is_drawn_on_the_query(tmp_path):
    hits = Hits(query(box=Box(0, 0, 451 / 2, 300)), [])
    shown = np.asarray(picture(saved(tmp_path, hits).images[0]))
    assert is_colour(shown[120, 178])
    assert not is_colour(shown[120, 190])


def test_a_box_of_a_hit_whose_size_is_unknown_is_in_the_photos_pixels(tmp_path):
    found = hit(PHOTOS / "coffee.png", box=Box(0, 0, 300, 400))  # of 600 x 400
    shown = np.asarray(picture(saved(tmp_path, Hits(query(), [found])).images[1]))
    assert is_colour(shown[120, 177])


@pytest.mark.parametrize(
    "box", [Box(float("nan"), 0, 9, 9), Box(5, 5, 5, 9), Box(9e9, 9e9, 9e10, 9e10)]
)
def test_a_box_that_cannot_be_is_said_and_the_photo_shown_without_it(tmp_path, box):
    found = hit(PHOTOS / "coffee.png", width=600, height=400, box=box)
    image = saved(tmp_path, Hits(query(), [found])).images[1]
    assert image["alt"].startswith("Hit 1, coffee.png (box ")
    assert picture(image).size == (360, 240)


def test_several_answers_are_sections_of_one_page(tmp_path):
    shown = saved(
        tmp_path, Hits(query("first"), [hit(PHOTOS / "coffee.png")]), Hits(query("second"), [])
    )
    assert [data for tag, data in shown.texts if tag == "h2"] == ["first", "second"]
    assert [tag for tag, _ in shown.elements].count("section") == 2
    assert "no hits" in shown.text


def test_a_query_without_a_photo_has_its_name_alone(tmp_path):
    hits = Hits(Query(encoding(), "like coffee.png"), [hit(PHOTOS / "coffee.png")])
    shown = saved(tmp_path, hits)
    assert len(shown.images) == 1
    assert ("h2", "like coffee.png") in shown.texts


# Photos that cannot be shown


def test_a_photo_that_cannot_be_read_is_a_gap_that_names_the_reason(tmp_path):
    truncated, text = tmp_path / "cut.jpg", tmp_path / "text.jpg"
    truncated.write_bytes((PHOTOS / "rocket.jpg").read_bytes()[:3000])
    text.write_text("not a photo")
    uris = [tmp_path / "gone.jpg", truncated, text, "sha256:0123", "nowhere://x/y.jpg", tmp_path]
    shown = saved(tmp_path, Hits(query(), [hit(uri) for uri in (*uris, PHOTOS / "coffee.png")]))
    assert len(shown.images) == 2  # the query's and the last hit's
    assert shown.text.count("No picture") == len(uris)
    for reason in ("No such file", "truncated", "it starts with", "nowhere", "folder"):
        assert reason in shown.text


def test_paths_are_hidden_where_that_is_asked_for(tmp_path):
    places = [PHOTOS / "coffee.png", tmp_path / "gone.jpg", "https://user:word@host/a/b.jpg?key=9"]
    answer = Hits(query(str(PHOTOS / "chelsea.png")), [hit(place) for place in places])
    whole = answer.save(tmp_path / "whole.html").read_text("utf-8")
    hidden = answer.save(tmp_path / "hidden.html", hide_paths=True).read_text("utf-8")
    for path in (str(PHOTOS), str(tmp_path), "user:word@host"):
        assert path in whole
        assert path not in hidden
    assert "key=9" not in hidden
    for name in ("chelsea.png", "coffee.png", "gone.jpg", "b.jpg"):
        assert name in Page(hidden).text


def test_photos_that_fail_slowly_do_not_hold_up_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "_PATIENCE", 0.0)
    gone = [hit(tmp_path / f"{i}.jpg") for i in range(3)]
    shown = saved(tmp_path, Hits(Query(encoding(), "q"), gone))
    assert shown.text.count("No such file") == 1
    assert shown.text.count("too long to fail") == 2


def test_an_enormous_file_is_not_read_for_a_thumbnail(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "_MAX_BYTES", 1000)
    shown = saved(tmp_path, Hits(query(), [hit(PHOTOS / "coffee.png")]))
    assert "larger than 1,000 bytes" in shown.text


# Hostile text


def test_text_from_outside_cannot_become_markup(tmp_path):
    def result(text: str) -> Hits:
        photo = tmp_path / f"{text}.jpg".replace("/", "∕").replace("\x00", "")
        photo.write_bytes((PHOTOS / "rocket.jpg").read_bytes())
        shown = hit(
            photo,
            classes=(text,),
            metadata={text: text, "list": [text], "dict": {text: text}},
            stages=(StageScore(text, 0.5, 1),),
            note=text,
        )
        return Hits(query(text), [shown, hit(text)])

    honest, hostile = saved(tmp_path, result("hon/est")), saved(tmp_path, result(HOSTILE))
    assert hostile.shape == honest.shape
    assert hostile.comments == honest.comments == []
    assert "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\\n</style>" in hostile.text
    assert len(hostile.images) == 2  # the query's and that of the file with the hostile name
    assert Page(result(HOSTILE)._repr_html_()).shape == Page(result("hon/est")._repr_html_()).shape


def test_control_characters_and_half_surrogates_are_shown_by_their_codes(tmp_path):
    found = hit("/gone/\udc80\x1b[31m\u202egpj.exe", metadata={"\ud800": "a\tb"})
    shown = saved(tmp_path, Hits(query("\udcff"), [found]))
    for code in ("\\udc80", "\\x1b[31m", "\\u202e", "\\ud800", "a\\tb", "\\udcff"):
        assert code in shown.text


def test_metadata_of_any_kind_and_length_is_shown(tmp_path):
    values = {"none": None, "nan": float("nan"), "set": {1}, 7: "number", "long": "x" * 10_000}
    found = hit(PHOTOS / "coffee.png", metadata=values)
    shown = saved(tmp_path, Hits(query(), [found]))
    texts = [data for _, data in shown.texts]
    assert {"null", "NaN", '"{1}"', "7", "x" * 400 + "…"} <= set(texts)


# Where the page goes


def test_a_page_replaces_the_one_before_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "hits.html"
    path.write_text("before")
    assert Hits(query(), []).save(str(path)) == path
    assert path.read_text().startswith("<!doctype html>")
    assert [entry.name for entry in tmp_path.iterdir()] == ["hits.html"]


def test_a_link_to_a_page_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "hits.html"
    link.symlink_to(tmp_path / "real" / "page.html")
    Hits(query(), []).save(link)
    assert link.is_symlink()
    assert (tmp_path / "real" / "page.html").is_file()


@pytest.mark.parametrize("name", ["", "no/such/folder/x.html", "file/x.html", "a\0b", "x" * 300])
def test_a_page_that_cannot_be_written_is_refused_by_name(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot write the page"):
        Hits(query(), []).save(tmp_path / name)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_device_is_not_replaced_by_a_page():
    with pytest.raises(SettingsError, match="device"):
        Hits(query(), []).save("/dev/null")
    assert Path("/dev/null").is_char_device()


def test_a_disk_that_fills_up_leaves_the_page_before_whole(tmp_path):
    path = tmp_path / "hits.html"
    path.write_text("before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(SettingsError, match="cannot write the page"):
            Hits(query(), []).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["hits.html"]


# The notebook


def test_a_notebook_shows_the_query_and_the_first_hits():
    found = [hit(PHOTOS / "coffee.png", classes=("espresso",)), *[hit("/gone.jpg")] * 44]
    shown = Page(Hits(query(box=Box(9, 9, 99, 99)), found)._repr_html_())
    assert [max(picture(image).size) for image in shown.images] == [240, 240]
    assert shown.elements[0] == ("div", {"class": "cwf"})
    assert {"espresso", "score 0.5000"} <= {data for _, data in shown.texts}
    assert [tag for tag, _ in shown.elements].count("li") == 40
    assert "5 more are not shown" in shown.text


def test_the_styles_of_a_notebooks_fragment_stay_inside_it():
    fragment = Page(hits_fragment(query(), []))
    style = "".join(data for tag, data in fragment.texts if tag == "style")
    selectors = re.findall(r"(?:^|[}{])\s*([^{}@]+)\{", style)
    assert len(selectors) > 20
    assert all(part.startswith(".cwf") for names in selectors for part in names.split(","))
