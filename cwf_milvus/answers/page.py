"""Results as HTML: a fragment for a notebook, and a page that is whole in itself.

Every name, number and picture comes from outside: text is escaped, pictures are decoded and
encoded anew, and the page neither runs a script nor loads anything.
"""

from __future__ import annotations

import base64
import html
import io
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from cwf_milvus.answers.drawing import draw_box, draw_matches, draw_polygon
from cwf_milvus.answers.hits import NOT_HERE, Hit, Query
from cwf_milvus.errors import BoxError, SettingsError
from cwf_milvus.files import holds_other, write_whole
from cwf_milvus.photos.box import Box
from cwf_milvus.photos.images import load_image, thumbnail
from cwf_milvus.text import printable

_PAGE_SIDE = 360  # pixels of a thumbnail's longest side
_NOTEBOOK_SIDE = 240
_NOTEBOOK_HITS = 40  # a notebook keeps every picture in its file
_MAX_BYTES = 64 * 2**20  # of an encoded photo, for a thumbnail
_PATIENCE = 30.0  # seconds lost on photos that could not be read, after which no more are tried
_LONGEST_VALUE = 400  # characters of a metadata value

# Greys are half transparent and text inherits, so that it fits any page, light or dark.
_STYLE = """
.cwf{font:15px/1.45 system-ui,sans-serif;overflow-wrap:anywhere}
.cwf *{box-sizing:border-box}
.cwf section{margin:0 0 2.5rem}
.cwf h2{font-size:1.15rem;margin:0 0 .75rem}
.cwf figure{margin:0;border:1px solid #8885;border-radius:8px;overflow:hidden;background:#8881;
display:flex;flex-direction:column;height:100%;break-inside:avoid}
.cwf .query{flex-flow:row wrap;align-items:center;height:auto;margin-bottom:1rem;
border:2px solid #ffb000}
.cwf .query .photo{width:24rem}
@media(max-width:40rem){.cwf .query .photo{width:100%}}
.cwf .photo{position:relative;flex:none;aspect-ratio:4/3;background:#8883}
.cwf .photo img{position:absolute;inset:0;width:100%;height:100%;object-fit:contain;margin:0}
.cwf .missing{display:flex;flex-direction:column;justify-content:center;gap:.4rem;padding:1rem;
text-align:center;font-size:.85rem;border-bottom:1px dashed #888a;overflow:auto}
.cwf figcaption{padding:.6rem .75rem .75rem;text-align:start}
.cwf ol{list-style:none;margin:0;padding:0;display:grid;gap:1rem;
grid-template-columns:repeat(auto-fill,minmax(min(100%,15rem),1fr))}
.cwf li{margin:0;padding:0;min-width:0}
.cwf p{margin:.2rem 0}
.cwf .top{display:flex;flex-wrap:wrap;gap:0 .5rem}
.cwf .score{margin-left:auto;font-variant-numeric:tabular-nums}
.cwf .uri,.cwf dt,.cwf th,.cwf .about{font-size:.8rem;opacity:.8;font-weight:400}
.cwf .rank,.cwf .name{font-weight:600}
.cwf .classes{display:flex;flex-wrap:wrap;gap:.3rem;margin:.4rem 0}
.cwf .classes span{border-radius:1rem;padding:0 .55rem;font-size:.82rem;background:#8883}
.cwf .note{border-left:3px solid #e0701a;padding-left:.5rem;font-size:.85rem}
.cwf .absent{border:1px solid #8885;border-left:4px solid #6b8fb5;border-radius:8px;
background:#6b8fb51f;padding:.65rem .9rem;margin:0 0 1rem}
.cwf dl{display:grid;grid-template-columns:minmax(4rem,auto) 1fr;gap:.1rem .6rem;margin:.4rem 0}
.cwf dd{margin:0;font-size:.85rem}
.cwf details{font-size:.85rem;margin-top:.4rem}
.cwf summary{cursor:pointer}
.cwf table{border-collapse:collapse;width:100%;margin-top:.3rem;font-variant-numeric:tabular-nums}
.cwf .pair img{display:block;width:100%;height:auto;margin-top:.4rem;max-width:45rem}
.cwf li:has(.pair[open]){grid-column:1/-1}
.cwf li:has(.pair[open]) .photo{max-width:24rem}
.cwf li:has(.pair[open]) figcaption{max-width:46rem}
.cwf td,.cwf th{padding:.1rem .3rem;border-bottom:1px solid #8884;text-align:right;
background:none}
.cwf tr>:first-child{text-align:left}
"""
_PAGE_STYLE = """
:root{color-scheme:light dark}
body{margin:0 auto;padding:1.25rem;max-width:90rem}
h1{font:600 1.4rem/1.3 system-ui,sans-serif;margin:0 0 1.25rem}
"""


def hits_fragment(query: Query, hits: Sequence[Hit], found: bool | None = None) -> str:
    """Return an answer as HTML for a notebook: the query with its box, and the first hits.

    Where the thing was not found, a line above the nearest says so.

    A photo that cannot be read any more is a labelled gap, never an exception.
    """
    section = _section(query, hits, found, _NOTEBOOK_HITS, _Photos(_NOTEBOOK_SIDE))
    return f'<div class="cwf"><style>{_STYLE}</style>{section}</div>'


def save_page(
    results: Sequence[tuple[Query, Sequence[Hit], bool | None]],
    path: str | Path,
    show: Sequence[str] | None = None,
    *,
    hide_paths: bool = False,
) -> Path:
    """Write answers as one HTML page without scripts, links or files beside it.

    Each hit has its rank, score, shared classes, metadata, where the thing is drawn on it (a solid
    frame where keypoints agree, a dashed box where it is the region most alike), lines between the
    points that match, and each stage's score and rank. A photo that cannot be read any more is a
    labelled gap that names the reason. The page appears whole or not at all.

    Args:
        results: query, hits and whether the thing was found (None: cannot be told), of one answer
            or several; each becomes a section.
        path: the file; a page that is there is replaced.
        show: which of the metadata; None for all.
        hide_paths: name photos without their folders or hosts, for a page that others will see.

    Returns:
        The path.

    Raises:
        SettingsError: the page cannot be written there, or a file that is no text is there.
    """
    if holds_other(path):
        raise SettingsError(f"{str(path)!r} is there, and is no page: name another file for it")
    photos = _Photos(_PAGE_SIDE, hide_paths)
    title = f"Hits for {photos.named(results[0][0].name)}" if len(results) == 1 else "Hits"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        # Should a mistake let markup through, the browser still runs and fetches nothing.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">",
        f"<title>{_text(title)}</title><style>{_PAGE_STYLE}{_STYLE}</style></head>",
        '<body class="cwf"><h1>What was found</h1><main>',
        *(_section(query, hits, found, len(hits), photos, show) for query, hits, found in results),
        "</main></body></html>\n",
    ]
    try:
        return write_whole(path, "\n".join(parts).encode())
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"cannot write the page {str(path)!r}: {getattr(error, 'strerror', None) or error}; "
            "name a file in a folder that exists and can be written to"
        ) from error


@dataclass(frozen=True)
class _Photo:
    """A photo, small, or why there is none; `scale` brings pixels of the original to its own."""

    picture: PIL.Image.Image | None
    scale: tuple[float, float] = (1.0, 1.0)
    reason: str = ""


class _Photos:
    """Reads photos for a page; those that fail slowly do not hold it up."""

    def __init__(self, side: int, hide_paths: bool = False) -> None:
        self.side = side
        self.hide_paths = hide_paths
        self.lost = 0.0  # seconds

    def read(self, source: Any, size: tuple[int, int]) -> _Photo:
        """Return a photo of an original of `size`, which is (0, 0) where that is unknown."""
        if self.lost > _PATIENCE:
            reason = "it was not read: photos before it took too long to fail"
            return _Photo(None, reason=reason)
        start = time.monotonic()
        try:
            image = load_image(source, at_least=self.side, max_bytes=_MAX_BYTES)
            small = thumbnail(image, self.side)
        except Exception as error:  # whatever is wrong with one photo, the page is written
            self.lost += time.monotonic() - start
            reason = "it cannot be read any more" if self.hide_paths else str(error)
            return _Photo(None, reason=reason)
        width, height = size if min(size) > 0 else (image.width, image.height)
        return _Photo(small, (small.width / width, small.height / height))

    def named(self, uri: str) -> str:
        """Return a photo's name as the page shows it."""
        return _last(uri) if self.hide_paths else uri


def _section(
    query: Query,
    hits: Sequence[Hit],
    found: bool | None,
    at_most: int,
    photos: _Photos,
    show: Sequence[str] | None = None,
) -> str:
    about = f"box {_numbers(query.box)}, " if query.box else ""
    count = f"{len(hits)} hit{'' if len(hits) == 1 else 's'}" if hits else "no hits"
    asked, picture = None, ""
    if query.image is not None:
        asked = photos.read(query.image, (query.image.width, query.image.height))
        picture = _framed(asked, f"The query, {photos.named(query.name)}", query.box)
    rest = len(hits) - at_most
    return "".join(
        [
            f'<section><figure class="query">{picture}<figcaption>',
            f"<h2>{_text(photos.named(query.name))}</h2>",
            f'<p class="about">{about}{count}</p></figcaption></figure>',
            _absent(hits) if found is False else "",
            "<ol>",
            *(_card(hit, rank, asked, photos, show) for rank, hit in enumerate(hits[:at_most], 1)),
            "</ol>",
            f"<p>{rest} more are not shown: save(&quot;hits.html&quot;) writes all.</p>"
            if rest > 0
            else "",
            "</section>",
        ]
    )


def _absent(hits: Sequence[Hit]) -> str:
    words = NOT_HERE.capitalize()
    nearest = " These are the nearest." if hits else ""
    return f'<p class="absent" role="status"><strong>{words}.</strong>{nearest}</p>'


def _card(
    hit: Hit, rank: int, asked: _Photo | None, photos: _Photos, show: Sequence[str] | None
) -> str:
    name = _last(hit.uri)
    classes = "".join(f"<span>{_text(name)}</span>" for name in hit.classes)
    own = photos.read(hit.uri, (hit.width, hit.height))
    return "".join(
        [
            "<li><figure>",
            _framed(own, f"Hit {rank}, {name}", hit.box, hit.polygon, hit.framed_by == "region"),
            f'<figcaption><p class="top"><span class="rank">{rank}</span> <span class="name">',
            f'{_text(name)}</span> <span class="score">score {hit.score:.4f}</span></p>',
            f'<p class="about">certainty {hit.certainty:.0%}</p>'
            if hit.certainty is not None
            else "",
            f'<p class="uri">{_text(hit.uri)}</p>' if name != photos.named(hit.uri) else "",
            f'<div class="classes">{classes}</div>' if classes else "",
            f'<p class="note">{_text(hit.note)}</p>' if hit.note else "",
            "".join(_metadata(hit.metadata, show)),
            _points(hit, asked, own),
            "".join(_stages(hit)),
            "</figcaption></figure></li>",
        ]
    )


def _last(uri: str) -> str:
    """Return what stands behind a uri's last slash, without a question."""
    path = uri.partition("?")[0] if "://" in uri else uri
    return path.rstrip("/").rpartition("/")[2] or uri


def _framed(
    photo: _Photo,
    alt: str,
    box: Box | None,
    polygon: Sequence[tuple[float, float]] | None = None,
    dashed: bool = False,
) -> str:
    """Return a photo with the polygon, or else the box, drawn on it; or a gap."""
    small = photo.picture
    if small is None:
        return _gap(photo.reason)
    if box is not None:
        try:
            inside = box.scaled(*photo.scale).checked(*small.size)
        except BoxError as error:
            alt += f" ({error})"
        else:
            alt += f", with the box {_numbers(box)}"
            if polygon is not None:
                small = draw_polygon(small, np.multiply(polygon, photo.scale))
            elif dashed:
                small = draw_polygon(small, inside.corners(), dashed=True)
            else:
                small = draw_box(small, inside)
    return f'<div class="photo">{_img(small, alt)}</div>'


def _points(hit: Hit, asked: _Photo | None, own: _Photo) -> str:
    """Return how many points match, and a picture of them where both photos can be shown."""
    if hit.inliers is None:
        return ""
    if hit.points is None:
        said = "No points agree; dashed: the region most alike"
        return f'<p class="about">{said if hit.framed_by == "region" else "No points agree"}</p>'
    said = f"{hit.inliers} points agree"
    if asked is None or asked.picture is None or own.picture is None:
        return f'<p class="about">{said}</p>'
    points = hit.points * (*asked.scale, *own.scale)
    pair = draw_matches(asked.picture, own.picture, points)
    return (
        f'<details class="pair"><summary>{said}</summary>'
        f"{_img(pair, f'The query beside the hit: {said}, a line for each')}</details>"
    )


def _metadata(metadata: dict[str, Any], show: Sequence[str] | None) -> Iterator[str]:
    names = [name for name in (metadata if show is None else show) if name in metadata]
    if not names:
        return
    yield "<dl>"
    for name in names:
        yield f"<dt>{_text(name)}</dt><dd>{_text(shown(metadata[name]))}</dd>"
    yield "</dl>"


def shown(value: object) -> str:
    """Return a value of the user's fields as text, cut where it is long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text[:_LONGEST_VALUE] + "…" if len(text) > _LONGEST_VALUE else text


def _stages(hit: Hit) -> Iterator[str]:
    if not hit.stages:
        return
    path = " → ".join(f"#{stage.rank}" for stage in hit.stages)
    yield f"<details><summary>Stages: {path}</summary><table>"
    yield '<tr><th scope="col">stage</th><th scope="col">score</th><th scope="col">rank</th></tr>'
    for stage in hit.stages:
        yield f"<tr><td>{_text(stage.stage)}</td><td>{stage.score:.4f}</td>"
        yield f"<td>{stage.rank}</td></tr>"
    if hit.box is not None:
        yield f'<tr><td>box</td><td colspan="2">{_numbers(hit.box)}</td></tr>'
    for match in hit.matches:
        sides = (_numbers(s) if isinstance(s, Box) else s for s in (match.query, match.hit))
        query, own = map(_text, sides)
        yield f"<tr><td>answers to {query}</td><td>{own}</td><td>{match.cosine:.4f}</td></tr>"
    yield "</table></details>"


def _text(value: object) -> str:
    """Escape a text for HTML, between tags or in quotes, as one line without control characters."""
    return html.escape(printable(str(value)))


def _numbers(box: Box) -> str:
    return ", ".join(f"{number:.0f}" for number in box)


def _img(image: PIL.Image.Image, alt: str) -> str:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85, subsampling=0)
    encoded = base64.b64encode(data.getvalue()).decode()
    return (
        f'<img src="data:image/jpeg;base64,{encoded}" alt="{_text(alt)}" '
        f'width="{image.width}" height="{image.height}">'
    )


def _gap(reason: str) -> str:
    return (
        f'<div class="photo missing"><strong>No picture</strong><span>{_text(reason)}</span></div>'
    )
