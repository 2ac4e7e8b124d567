"""The commands of networks alone: `backbones`, `classes`, `explain`, `convert-weights`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from cwf_milvus.cli.options import (
    OK,
    SOME_FAILED,
    add_command,
    backbone_options,
    pixels_option,
    print_pairs,
)
from cwf_milvus.errors import ImageError, SettingsError
from cwf_milvus.files import holds_other
from cwf_milvus.text import printable

if TYPE_CHECKING:  # torch takes seconds, and help need not wait for it
    from cwf_milvus.encode.encoder import Encoder, EncoderOptions
    from cwf_milvus.encode.settings import Settings

_MARK = b"tEXtSoftware\0cwf-milvus"  # of the pictures that explain drew


def add_backbones(commands: Any) -> None:
    """Add `backbones` and its options."""
    command = add_command(
        commands, "backbones", _backbones, "list the networks and what was measured with them"
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def _backbones(arguments: argparse.Namespace) -> int:
    from cwf_milvus.backbones import list_backbones

    for info in list_backbones():
        if arguments.json:
            print(json.dumps(vars(info)))
        else:
            print(info.name)
            print_pairs({k: v for k, v in vars(info).items() if k != "name"}, indent="  ")
    return OK


def add_classes(commands: Any) -> None:
    """Add `classes` and its options."""
    command = add_command(commands, "classes", _classes, "name the likely classes of photos")
    command.add_argument("images", nargs="+", metavar="IMAGE")
    command.add_argument("--box", metavar="X1,Y1,X2,Y2", help="of the crop alone (the whole photo)")
    command.add_argument("-n", type=int, default=10, metavar="N", help="classes (%(default)s)")
    command.add_argument("--json", action="store_true", help="print JSON, an object a photo")
    pixels_option(command)
    backbone_options(command)


def _classes(arguments: argparse.Namespace) -> int:
    encoder = _bare_encoder(arguments, n_classes=arguments.n)
    failed = False
    for image in arguments.images:
        try:
            encoding = encoder.encode_query(image, arguments.box)
        except ImageError as error:
            print(printable(f"failed: {error}"), file=sys.stderr)
            failed = True
            continue
        top = [
            {"id": int(i), "name": encoder.class_names[i], "score": round(float(score), 4)}
            for i, score in zip(encoding.class_ids, encoding.class_scores, strict=True)
        ]
        if arguments.json:
            print(json.dumps({"uri": encoding.uri, "classes": top}))
        else:
            print(f"{printable(encoding.uri)}:")
            for entry in top:
                print(f"  {entry['id']:4d}  {entry['score']:.4f}  {entry['name']}")
    return SOME_FAILED if failed else OK


def add_explain(commands: Any) -> None:
    """Add `explain` and its options."""
    command = add_command(
        commands,
        "explain",
        _explain,
        "draw class maps and regions over a photo, or the points it shares with another, as PNG",
    )
    command.add_argument("image", metavar="IMAGE")
    command.add_argument(
        "--box", metavar="X1,Y1,X2,Y2", help="the thing, in pixels of the photo (all of it)"
    )
    command.add_argument(
        "--hit",
        metavar="PHOTO",
        help="draw this photo beside it, and lines between points that agree (none)",
    )
    command.add_argument("-n", type=int, default=6, metavar="N", help="class maps (%(default)s)")
    command.add_argument(
        "-o", "--output", default="explain.png", metavar="FILE.png", help="(%(default)s)"
    )
    pixels_option(command)
    backbone_options(command)


def _explain(arguments: argparse.Namespace) -> int:
    from PIL.PngImagePlugin import PngInfo

    from cwf_milvus.explain import explain_figure, match_figure  # torch takes seconds

    if arguments.hit is not None:
        figure = match_figure(arguments.image, arguments.hit, arguments.box)
    else:
        figure = explain_figure(
            _bare_encoder(arguments), arguments.image, arguments.box, n_classes=arguments.n
        )
    if holds_other(arguments.output, _MARK):
        raise SettingsError(
            f"{arguments.output!r} is there, and was not drawn by explain: name another file, or "
            "remove it"
        )
    marked = PngInfo()
    marked.add_text("Software", "cwf-milvus")
    try:
        figure.save(arguments.output, pnginfo=marked)  # which other formats pass over
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"cannot write {arguments.output!r} ({error}): name a .png that can be written"
        ) from error
    print(f"written: {arguments.output}")
    return OK


def add_convert_weights(commands: Any) -> None:
    """Add `convert-weights` and its options."""
    command = add_command(
        commands,
        "convert-weights",
        _convert_weights,
        "turn the paper's published weights (Keras .h5 or .caffemodel) into safetensors",
    )
    command.add_argument("source", metavar="SOURCE", help="a Keras 1 .h5 or a .caffemodel")
    command.add_argument("target", metavar="TARGET.safetensors")


def _convert_weights(arguments: argparse.Namespace) -> int:
    from cwf_milvus.backbones.convert import convert_weights

    print_pairs(convert_weights(Path(arguments.source), Path(arguments.target)))
    return OK


def _bare_encoder(arguments: argparse.Namespace, **settings: Unpack[Settings]) -> Encoder:
    from cwf_milvus.encode.encoder import Encoder

    options: EncoderOptions = {**settings, "whitening": None}
    if arguments.max_pixels:
        options["max_pixels"] = arguments.max_pixels
    options |= {
        "weights": arguments.weights,
        "device": arguments.device,
        "runtime": arguments.runtime,
    }
    return Encoder(arguments.backbone, **options)
