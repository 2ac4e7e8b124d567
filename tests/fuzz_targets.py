"""What `fuzz.py` gives its inputs to: every reader of bytes or text from outside.

A target is made in a folder of its own, and is a function of an input with some whole inputs to
begin with. It passes over the errors that its reader documents, and no others.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import pickle
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

_SMALL = (45, 30)  # pixels: what is changed in a small photo matters more often
Target = Callable[[bytes], object]
Made = tuple[Target, list[bytes]]

FORMATS = ("JPEG", "PNG", "WebP", "TIFF", "BMP", "GIF", "AVIF", "JPEG 2000", "HEIC", "RAW")
WEIGHTS: dict[str, float] = {
    **{f"photo-{name.replace(' ', '').lower()}": 1.5 for name in FORMATS},
    "exif": 2,
    "lean": 2,
    "encoder": 1,
    "whitening": 1,
    "checkpoint": 2,
    "convert": 1,
    "certainty": 0.5,
    "truth": 1,
    "revisited": 2,
    "oxford": 0.5,
    "boxes": 0.5,
    "metadata": 2,
    "configuration": 1.5,
    "texts": 1,
    "report": 1,
    "kept-names": 0.3,
    "vectors": 2,
    "sidecar": 1.5,
    "filter": 1.5,
    "files": 3,
    "salvage": 2,
    "open": 2,
    "backup": 1.5,
    "backup-parts": 3,
    "export": 3,
    "url": 1,
    "web": 5,
    "web-locked": 4,
}
"""Each target, and its part of the time."""


def make(name: str, folder: Path) -> Made:
    """Return a target, made in a folder that stays as long as it is used."""
    logging.disable(logging.INFO)  # Milvus Lite tells a lot
    for module in ("fuzz_targets", "fuzz_stores", "fuzz_web"):
        made = getattr(importlib.import_module(module), name.replace("-", "_"), None)
        if made is not None:
            return made(folder)
    return _photo(name)


def chosen(data: bytes, n: int) -> tuple[int, bytes]:
    """Return a number below n, of the first byte, and the rest."""
    return (data[0] % n if data else 0), data[1:]


def numbered(wholes: Sequence[bytes]) -> list[bytes]:
    """Return whole inputs of several kinds for a target that asks `chosen`."""
    return [bytes([number]) + whole for number, whole in enumerate(wholes)]


# Photos


def _photo(name: str) -> Made:
    from photo_mutants import samples

    from cwf_milvus.errors import ImageError
    from cwf_milvus.photos.decoding import decode
    from cwf_milvus.photos.limits import MAX_PIXELS

    wholes = next(
        v for k, v in samples(_SMALL).items() if f"photo-{k.replace(' ', '').lower()}" == name
    )
    called = "x.dng" if name == "photo-raw" else "x"

    def target(data: bytes) -> None:
        for at_least in (100, None):
            with suppress(ImageError):
                pixels, width, height = decode(data, called, at_least, 0, MAX_PIXELS)
                assert pixels.ndim == 3
                assert width * height

    return target, wholes


def exif(folder: Path) -> Made:
    import PIL.Image
    from photo_mutants import samples

    from cwf_milvus.photos.exif import exif_fields

    told = PIL.Image.Exif()
    told.update({271: "Maker", 272: "Model", 274: 6})
    told[34665] = {36867: "2024:05:01 12:30:00", 36881: "+02:00"}
    told[34853] = {1: "N", 2: (52.0, 30.0, 1.5), 3: "W", 4: (13.0, 24.0, 2.0), 5: b"\1", 6: 34.5}
    told.fp = None  # type: ignore[attr-defined]  # Pillow looks for it where there are folders
    block = told.tobytes()

    def written(kind: str) -> bytes:
        stream = io.BytesIO()
        PIL.Image.new("RGB", (8, 8)).save(stream, kind, exif=block)
        return stream.getvalue()

    def target(data: bytes) -> None:
        kind, rest = chosen(data, 3)
        if kind == 0:
            head = b"\xff\xd8\xff\xe1" + min(len(rest) + 2, 65535).to_bytes(2, "big")
            frame = b"\xff\xc0\0\x0b\x08\0\x08\0\x08\x01\x01\x11\0\xff\xda\0\x08\x01\x01\0\0\x3f\0"
            rest = head + rest[:65533] + frame
        json.dumps(exif_fields(rest, "x.dng" if kind == 2 else "x"), allow_nan=False)

    wholes = [written(kind) for kind in ("JPEG", "PNG", "TIFF", "WEBP", "AVIF")]
    raw = samples(_SMALL)["RAW"][0]
    return target, [b"\0" + block, *(b"\1" + one for one in wholes), b"\2" + raw]


def lean(folder: Path) -> Made:
    from photo_mutants import samples

    from cwf_milvus.photos import formats
    from cwf_milvus.photos import lean as module

    readers = [
        module.lean_jpeg,
        module.lean_png,
        module.lean_gif,
        module.lean_boxes,
        module.jpeg2000_levels,
        module.orientation,
        lambda data: module.orientation(b"", data),
        formats.format_of,
    ]
    by_kind = samples(_SMALL)
    kinds = ("JPEG", "PNG", "GIF", "AVIF", "JPEG 2000")
    wholes = [bytes([n]) + whole for n, kind in enumerate(kinds) for whole in by_kind[kind]]
    block = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    wholes += [b"\5" + block, b'\6<x tiff:Orientation="6"/>', b"\7" + by_kind["AVIF"][0]]
    wholes += [b"\3" + whole for whole in by_kind.get("HEIC", [])]

    def target(data: bytes) -> None:
        kind, rest = chosen(data, len(readers))
        with suppress(ValueError):
            readers[kind](rest)

    return target, wholes


# Encoders and weights


def encoder(folder: Path) -> Made:
    from small_encoders import tiny

    from cwf_milvus.encode.saved import SETTINGS_FILE, WHITENING_FILE, Saved
    from cwf_milvus.errors import SettingsError, WhiteningError

    told = tiny(whitening=None).state()[SETTINGS_FILE]
    whole = {SETTINGS_FILE: told, WHITENING_FILE: whitening(folder)[1][0]}

    def target(data: bytes) -> None:
        with suppress(SettingsError, WhiteningError):
            read = Saved.from_files({**whole, SETTINGS_FILE: data}, "it")
            read.with_keypoints(3).to_files()
            assert Saved.from_files(read.to_files()).settings == read.settings

    return target, [told, json.dumps(json.loads(told)).encode()]


def whitening(folder: Path) -> Made:
    import torch
    from small_encoders import SMALL

    from cwf_milvus.encode.settings import default_settings
    from cwf_milvus.encode.whitenings import Whitenings
    from cwf_milvus.errors import WhiteningError
    from cwf_milvus.method.whitened import FittedWhitening

    settings = default_settings("timm:test_resnet", **SMALL, dim=2)

    def part() -> FittedWhitening:
        return FittedWhitening.from_tensors(
            {
                "mean": torch.zeros(4),
                "components": torch.eye(4)[:3].half(),
                "explained_variance": torch.ones(3),
                "n_samples": torch.tensor(9),
                "eps": torch.tensor(1e-9, dtype=torch.float64),
                "power": torch.tensor(0.5, dtype=torch.float64),
            }
        )

    whole = Whitenings(part(), part(), "here", {"backbone": "timm:test_resnet"}).to_bytes()

    def target(data: bytes) -> None:
        size = int.from_bytes(data[:8], "little")
        if data[:1] == b"{":  # a header whose length is told right
            head, _, rest = data.partition(b"\0\0\0\0\0\0\0\0")
            data, size = len(head).to_bytes(8, "little") + head + rest, len(head)
        with suppress(WhiteningError):
            read = Whitenings.from_bytes(data, name="it")
            assert read.digest
            read.check_fits(settings)
        assert size >= 0

    return target, [whole, whole[8:]]


def checkpoint(folder: Path) -> Made:
    import torch
    from safetensors.torch import save

    from cwf_milvus.backbones.weights import classes_in, fill, load_state_dict
    from cwf_milvus.errors import WeightsError

    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    state, file = network.state_dict(), folder / "w.pth"

    def written(value: object, **options: object) -> bytes:
        stream = io.BytesIO()
        torch.save(value, stream, **options)  # type: ignore[arg-type]
        return stream.getvalue()

    def target(data: bytes) -> None:
        file.write_bytes(data)
        with suppress(WeightsError):
            read = load_state_dict(file)
            classes_in(network, read)
            fill(network, read, "it")

    old = {"_use_new_zipfile_serialization": False}
    wrapped = {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}
    return target, [save(state), written(state), written(wrapped, **old), written(wrapped)]


def convert(folder: Path) -> Made:
    """Weights of Keras and Caffe; those of Keras here in this process, for all that is in them.

    A damaged file on which libhdf5 hangs is no finding: `convert_weights` ends such a process.
    """
    import h5py
    import numpy as np
    from test_convert import blob, layer

    from cwf_milvus.backbones import convert as module
    from cwf_milvus.backbones import keras_file
    from cwf_milvus.errors import WeightsError

    source, made = folder / "x.h5", folder / "made.safetensors"
    weight, bias = np.zeros((64, 3, 3, 3), "f4"), np.zeros(64, "f4")
    with h5py.File(source, "w") as file:
        file.attrs["layer_names"] = [b"conv1_1"]
        group = file.create_group("conv1_1")
        group.attrs["weight_names"] = [b"w", b"b"]
        group["w"], group["b"] = weight[:1], bias[:1]
    caffe = layer("conv1_1", blob(weight[:1]), blob(bias[:1]))

    def target(data: bytes) -> None:
        source.write_bytes(data)
        if data.startswith(b"\x89HDF"):
            with suppress(OSError, *keras_file.DAMAGE):
                keras_file.read_keras(source, module._SHAPES)
            return
        with suppress(WeightsError):
            module.convert_weights(source, made)

    return target, [source.read_bytes(), caffe]


# Ground truth and calibrations


def certainty(folder: Path) -> Made:
    import numpy as np

    from cwf_milvus.errors import SettingsError
    from cwf_milvus.method.certainty import CertaintyModel, certainties, is_found
    from cwf_milvus.store.calibration import shipped_model

    model = CertaintyModel.from_json(
        json.dumps(
            {
                "origin": "here",
                "score_alone": {"weight": 1.5, "bias": 1.0, "threshold": 0.5},
                "verified": None,
            }
        )
    )
    assert shipped_model("none") is None
    scores, inliers = np.array([0.1, 0.5, -1.0]), np.array([0, 5, 70])

    def target(data: bytes) -> None:
        with suppress(SettingsError):
            read = CertaintyModel.from_json(data.decode("utf-8", "replace"))
            for n in (None, inliers):
                found = certainties(scores, n, read)
                assert np.isfinite(found).all()
                is_found(scores, n, read)

    text = model.to_json()
    both = json.dumps({**json.loads(text), "verified": json.loads(text)["score_alone"]})
    return target, [text.encode(), both.encode()]


def truth(folder: Path) -> Made:
    from test_datasets import ground_truth

    from cwf_milvus.errors import SettingsError
    from cwf_milvus.evaluation.datasets.ground_truth import load_ground_truth

    for name in ("jpg/a.jpg", "jpg/b.jpg", "jpg/c.jpg", "queries/q.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"photo")
    file = folder / "gnd.json"

    def target(data: bytes) -> None:
        file.write_bytes(data)
        with suppress(SettingsError):
            load_ground_truth(file)

    return target, [json.dumps(ground_truth()).encode()]


def boxes(folder: Path) -> Made:
    from test_datasets import ground_truth

    from cwf_milvus.cli.evaluate import read_boxes
    from cwf_milvus.errors import SettingsError
    from cwf_milvus.evaluation.datasets.ground_truth import load_ground_truth

    truth(folder)
    (folder / "gnd.json").write_text(json.dumps(ground_truth()))
    dataset, file = load_ground_truth(folder / "gnd.json"), folder / "boxes.json"
    entries = [{"image": "queries/q.jpg", "box": [1, 2, 3, 4], "group": "x"}]

    def target(data: bytes) -> None:
        file.write_bytes(data)
        with suppress(SettingsError):
            read_boxes(file, dataset)

    return target, [json.dumps(entries).encode(), json.dumps({dataset.name: entries}).encode()]


def revisited(folder: Path) -> Made:
    import numpy as np
    from test_datasets import gnd

    from cwf_milvus.errors import SettingsError
    from cwf_milvus.evaluation.datasets.buildings import load_revisited

    (folder / "jpg").mkdir()
    for number in range(4):
        (folder / f"jpg/all_souls_{number:06}.jpg").write_bytes(b"photo")
    file = folder / "gnd_roxford5k.pkl"
    arrays = [
        {"bbx": np.array([1.5, 2, 30, 40]), "easy": np.array([0]), "hard": [np.int64(1)], "junk": 2}
    ]

    def target(data: bytes) -> None:
        file.write_bytes(data)
        with suppress(SettingsError):
            load_revisited(folder, "roxford5k")

    wholes = [pickle.dumps(gnd(), protocol) for protocol in range(5)]
    return target, wholes + [pickle.dumps(gnd(gnd=arrays), protocol) for protocol in (0, 2, 4)]


def oxford(folder: Path) -> Made:
    from test_datasets import put, put_truth

    from cwf_milvus.errors import SettingsError
    from cwf_milvus.evaluation.datasets.buildings import load_oxford5k

    put(folder, *(f"jpg/all_souls_{number:06}.jpg" for number in range(5)))
    query = "oxc1_all_souls_000000 136.5 34.1 648.5 955.7"
    good, ok, junk = "all_souls_000000 all_souls_000001", "all_souls_000002", "all_souls_000003"
    put_truth(folder / "gt", "all_souls_1", query, good=good, ok=ok, junk=junk)
    files = [folder / f"gt/all_souls_1_{kind}.txt" for kind in ("query", "good", "ok", "junk")]
    wholes = [file.read_bytes() for file in files]

    def target(data: bytes) -> None:
        kind, rest = chosen(data, len(files))
        files[kind].write_bytes(rest)
        with suppress(SettingsError):
            load_oxford5k(folder)
        files[kind].write_bytes(wholes[kind])

    return target, numbered(wholes)


# What people write


def metadata(folder: Path) -> Made:
    from cwf_milvus.errors import SettingsError
    from cwf_milvus.index.metadata import Metadata

    files = [folder / "metadata.csv", folder / "metadata.jsonl"]
    uris = [str(folder / name) for name in ("a.jpg", "b.jpg", "x/c.jpg")]

    def target(data: bytes) -> None:
        kind, rest = chosen(data, len(files))
        files[kind].write_bytes(rest)
        with suppress(SettingsError):
            read = Metadata.read(str(files[kind]), [str(folder)])
            for uri in uris:
                read.of(uri)
            read.match(uris)
            bool(read)

    csv = 'file_name,year,name,n\na.jpg,1999,"x, y",n/a\nb.jpg,007,é,"1,000"\nx/c.jpg,-1.5,,3\n'
    lines = '{"file_name": "a.jpg", "year": 1999, "of": {"x": [1.5, null]}}\n{"file_name": "b"}\n'
    return target, numbered([csv.encode(), lines.encode()])


def configuration(folder: Path) -> Made:
    from cwf_milvus.cli.configuration import NAME, Configuration
    from cwf_milvus.cli.program import build_parser, commands_of
    from cwf_milvus.errors import SettingsError

    own, there = folder / "own/cwf-milvus", folder / "photos"
    os.environ["XDG_CONFIG_HOME"] = str(own.parent)
    for place in (own, there):
        place.mkdir(parents=True)
    commands = commands_of(build_parser())

    def target(data: bytes) -> None:
        kind, rest = chosen(data, 2)
        file = (own, there)[kind] / NAME
        file.write_bytes(rest)
        with suppress(SettingsError):
            read = Configuration.read([there])
            read.shown()
            read.apply(commands, ["search", "--limit=3"])
        file.unlink()

    text = (
        'uri = "photos.db"\ncollection = "photos"\nquiet = true\n[search]\nlimit = 5\n'
        'rerank = "auto"\nshow = ["year", "place"]\nmin-certainty = 0.5\nexplain = true\n'
        "[neighbours]\nlimit = 3\n[index]\nexif = true\n"
    )
    more = 'workers = 2\nbatch-size = 8\nmax-pixels = 1000000\ndevice = "cpu"\n'
    return target, numbered([(text + more).encode(), text.encode()])


def texts(folder: Path) -> Made:
    from cwf_milvus.errors import BoxError, ImageError
    from cwf_milvus.photos import sources
    from cwf_milvus.photos.box import Box
    from cwf_milvus.store.layout import checked_uri
    from cwf_milvus.text import printable

    (folder / "a.jpg").write_bytes(b"photo")
    os.chdir(folder)
    read = ("file:", "/", "a", ".", "memory:", "zip:", "data:")

    def target(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        printable(text)
        with suppress(BoxError):
            box = Box.parse(text)
            box.checked(640, 480).cells()
            box.asked(640, 480)
        with suppress(ImageError):
            sources.is_local(text)
            sources.is_gone(text)
            sources.size_of(text)
            checked_uri(sources.uri_of(text))
            if text.startswith(read) and text.count("::") < 2:
                sources.read_bytes(text, max_bytes=5000)

    names = [b"279,100,601,862", b"0.1,0.1,.5,nan", b"a.jpg", b"file:///etc/hostname", b"/dev/null"]
    urls = [b"https://example.org/a%20b.jpg?x=1", b"zip://a.jpg::file:///tmp/a.zip", b"memory://a"]
    return target, [*names, *urls, b"data:image/png;base64,iVBORw0KGgo=", b"file://localhost/a"]


def report(folder: Path) -> Made:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cwf_milvus.errors import SettingsError
    from cwf_milvus.index import report_files

    names = ("r.jsonl", "r.csv", "r.parquet", "r.parquet.lines")
    files = [folder / name for name in names]

    def target(data: bytes) -> None:
        kind, rest = chosen(data, len(files))
        for file in files:
            file.unlink(missing_ok=True)
        files[kind].write_bytes(rest)
        place = files[min(kind, 2)]
        with suppress(SettingsError):
            one = report_files.opened(place)
            one.line("/a.jpg", "added", "")
            one.close({"added": 1})
            again = report_files.opened(place)
            again.line("/b.jpg", "failed", "no photo")
            again.close()

    def fresh(name: str) -> bytes:
        one = report_files.opened(folder / name)
        one.line("/a 'é\".jpg", "failed", 'it is\n"damaged"')
        one.close({"added": 1})
        return (folder / name).read_bytes()

    table = pa.table({name: ["x"] for name in ("uri", "status", "reason")})
    stream = io.BytesIO()
    pq.write_table(table, stream)
    lines = fresh("r.jsonl")
    return target, numbered([lines, fresh("r.csv"), stream.getvalue(), lines])


def kept_names(folder: Path) -> Made:
    from cwf_milvus.encode.class_names import keep_class_names, kept_class_names

    os.environ["CWF_MILVUS_CACHE"] = str(folder)
    print_ = "0" * 64
    keep_class_names(print_, ["a cat", "a cup"])
    file = folder / "class-names" / f"{print_}.json"

    def target(data: bytes) -> None:
        file.write_bytes(data)
        kept_class_names(print_)

    return target, [file.read_bytes()]
