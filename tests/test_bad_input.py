"""Bad input, each kind by its name, through `cwf-milvus index` and `search` as a user meets it."""

import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from command_line import TINY
from photo_files import CHELSEA, encoded
from pymilvus import MilvusClient

from cwf_milvus.cli.program import main
from cwf_milvus.collection import InstanceCollection


def bomb():
    """A PNG of 69 bytes whose header claims 20,000 x 20,000 pixels."""

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def pil(mode):
    return PIL.Image.fromarray(CHELSEA).convert(mode)


def animated():
    stream = io.BytesIO()
    pil("RGB").save(stream, "GIF", save_all=True, append_images=[pil("RGB").rotate(90)])
    return stream.getvalue()


def turned():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return encoded(CHELSEA, "JPEG", exif=exif)


JPEG = encoded(CHELSEA, "JPEG")

SAME = 1e-3
# name: what makes it, and what the user reads of it
BAD = {
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "is damaged or cut off (", "copy it again"),
    "truncated.png": (encoded()[:5000], "is damaged or cut off (", "copy it again"),
    "zero-byte.jpg": (b"", "is empty (0 bytes)", "copy it again or remove it"),
    "text.jpg": (b"dear diary", "is not a photo that can be read, it starts with b'dear diary'"),
    "html.png": (b"<html>404</html>", "it starts with b'<html>404</h'"),
    "bomb.png": (bomb(), "20000 x 20000 = 400,000,000 pixels, above the limit"),
    "dangling.jpg": (Path("nowhere.jpg"), "a link to nothing"),
    "circle.jpg": (Path("circle.jpg"), "a link to nothing, or to itself"),
    "unreadable.jpg": (Path("/proc/self/mem"), "Input/output error"),
    "pipe.jpg": (os.mkfifo, "a pipe, socket or device"),
}
GOOD = {
    "good.jpg": JPEG,
    "good.png": encoded(),
    "one-pixel.png": encoded(np.full((1, 1, 3), 200, np.uint8)),
    "16-bit.png": encoded(np.asarray(pil("L")).astype(np.uint16) * 257),
    "grey.jpg": encoded(pil("L"), "JPEG"),
    "palette.png": encoded(pil("P")),
    "cmyk.jpg": encoded(pil("CMYK"), "JPEG"),
    "rgba.png": encoded(pil("RGBA")),
    "animated.gif": animated(),
    "exif-turned.jpg": turned(),
    'it\'s "quoted".png': encoded(),
    "two  spaces .png": encoded(),
    "new\nline.png": encoded(),
    "escape\x1b[2J\x1b]0;pwned\x07.png": encoded(),
    "Zürich – 東京 🐈 e\u0301.png": encoded(),
    "a folder named.jpg/inner.png": encoded(),
}


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """One folder with all of it, indexed once; the collection's options, and what was said."""
    root = tmp_path_factory.mktemp("bad")
    folder = root / "photos"
    for name, content in {**GOOD, **{name: bad[0] for name, bad in BAD.items()}}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, Path):
            path.symlink_to(content)
        else:
            content(path)
    uri, report = root / "photos.db", root / "report.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        out, err = io.StringIO(), io.StringIO()
        patch.setattr("sys.stdout", out)
        patch.setattr("sys.stderr", err)
        status = main(["index", str(folder), "--uri", str(uri), "--report", str(report), *TINY])
    return {
        "folder": folder,
        "uri": str(uri),
        "status": status,
        "out": out.getvalue(),
        "err": err.getvalue(),
        "report": [json.loads(line) for line in report.read_text().splitlines()],
    }


def test_the_run_goes_to_its_end_and_the_status_says_that_some_failed(indexed):
    assert indexed["status"] == 1
    assert f"{len(GOOD)} added, 0 updated, 0 skipped, {len(BAD)} failed" in indexed["out"]


@pytest.mark.parametrize("name", BAD)
def test_each_bad_file_is_listed_with_its_own_reason(indexed, name):
    _, *expected = BAD[name]
    uri = str(indexed["folder"] / name)
    (entry,) = [line for line in indexed["report"] if line.get("uri") == uri]
    assert entry["status"] == "failed"
    for words in expected:
        assert words in entry["reason"]
    (line,) = [line for line in indexed["err"].splitlines() if uri in line]
    assert line == f"failed: {entry['reason']}"


@pytest.mark.parametrize("name", GOOD)
def test_every_unusual_photo_is_in_under_its_own_name_and_finds_itself(indexed, name, capsys):
    path = str(indexed["folder"] / name)
    assert main(["search", path, "--uri", indexed["uri"], "--rerank", "none", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    best = answer["hits"][0]["score"]
    assert best == pytest.approx(1, abs=1e-5)
    # several of these files show the same pixels, and a JPEG was decoded at half scale
    assert path in [hit["uri"] for hit in answer["hits"] if hit["score"] > best - SAME]


def test_a_turned_photo_is_stored_upright(indexed):
    path = str(indexed["folder"] / "exif-turned.jpg")
    with InstanceCollection.open(indexed["uri"], "photos") as photos:
        (row,) = photos.get([path])
    assert (row.width, row.height) == (CHELSEA.shape[0], CHELSEA.shape[1])


def test_a_name_cannot_steer_the_terminal(indexed, capsys):
    hostile = [str(indexed["folder"] / name) for name in GOOD if "\n" in name or "\x1b" in name]
    main(["search", *hostile, "--uri", indexed["uri"]])
    main(["remove", *[f"{path}.gone" for path in hostile], "--uri", indexed["uri"]])
    main(["search", *[f"{path}.gone" for path in hostile], "--uri", indexed["uri"]])
    main(["index", *[f"{path}.gone" for path in hostile], "--uri", indexed["uri"]])
    main(["classes", *[f"{path}.gone" for path in hostile], "--backbone", "timm:test_resnet",
          "--weights", "random"])  # fmt: skip
    shown = "".join(capsys.readouterr()) + indexed["out"] + indexed["err"]
    assert r"escape\x1b[2J" in shown
    assert r"new\nline.png" in shown
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "line.png" not in [line.strip() for line in shown.splitlines()]


# Boxes


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ("900,900,950,950", "lies outside the photo of 451 x 300 pixels"),
        ("-9,-9,0,0", "lies outside the photo"),
        ("5,5,5,90", "has no area"),
        ("100,100,50,50", "has no area"),
        ("nan,0,5,5", "is not finite"),
        ("1,2,3", "give x1,y1,x2,y2"),
        ("all", "give x1,y1,x2,y2"),
    ],
)
def test_a_box_that_shows_nothing_is_refused(indexed, capsys, box, message):
    path = str(indexed["folder"] / "good.png")
    assert main(["search", path, f"--box={box}", "--uri", indexed["uri"]]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


@pytest.mark.parametrize("name", ["zero-byte.jpg", "truncated.jpg", "bomb.png", "dangling.jpg"])
def test_a_query_that_cannot_be_read_is_refused_with_its_reason(indexed, capsys, name):
    path = str(indexed["folder"] / name)
    assert main(["search", path, "--uri", indexed["uri"]]) == 2
    assert BAD[name][1] in capsys.readouterr().err


# Weights


def test_nan_in_weights_is_refused_before_a_collection_is_made(tmp_path, capsys):
    import timm
    from safetensors.torch import save_file

    state = timm.create_model("test_resnet").state_dict()
    state["fc.weight"][3, 5] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    (tmp_path / "good.png").write_bytes(encoded())
    options = [*TINY, "--weights", str(tmp_path / "nan.safetensors")]
    assert main(["index", str(tmp_path), "--uri", str(tmp_path / "p.db"), *options]) == 2
    message = capsys.readouterr().err
    assert "nan.safetensors" in message
    assert "fc.weight" in message
    assert not (tmp_path / "p.db").exists()


# Places


def test_a_file_of_milvus_lite_2_is_told_apart(tmp_path, capsys):
    (tmp_path / "old.db").write_bytes(b"SQLite format 3\0" + bytes(4080))
    (tmp_path / "good.png").write_bytes(encoded())
    assert main(["index", str(tmp_path), "--uri", str(tmp_path / "old.db"), *TINY]) == 3
    message = capsys.readouterr().err
    assert "is a file of Milvus Lite 2.x, which Milvus Lite 3 cannot read" in message
    assert "into another path" in message


def test_a_collection_of_another_program_is_left_alone(tmp_path, capsys):
    client = MilvusClient(str(tmp_path / "p.db"))
    client.create_collection("photos", dimension=8)
    (tmp_path / "good.png").write_bytes(encoded())
    for command in (["index", str(tmp_path), *TINY], ["remove", "--all"], ["info"]):
        assert main([*command, "--uri", str(tmp_path / "p.db")]) == 3
        assert "was not made by cwf-milvus" in capsys.readouterr().err
    assert client.has_collection("photos")
    client.close()
