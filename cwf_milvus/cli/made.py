"""What `cwf-milvus index` makes a new collection with: the options, and the encoder."""

from __future__ import annotations

import argparse
from typing import Any

from cwf_milvus.cli.options import count_or_all, index_option, numbers, progress_bar
from cwf_milvus.errors import MismatchError


def made_options(command: argparse.ArgumentParser) -> None:
    """Add the options that count when the collection is created."""
    made = command.add_argument_group("when the collection is created")
    made.add_argument("--backbone", metavar="NAME", help="the network (efficientnet_lite0)")
    made.add_argument(
        "--layer", metavar="NAME", help="the layer that gives the features (the network's last)"
    )
    made.add_argument(
        "--cams-from",
        metavar="BACKBONE",
        help="another network that supplies the class maps (the backbone)",
    )
    made.add_argument(
        "--image-size",
        type=int,
        metavar="PX",
        help="longest side of the features' view (640; of other networks 512)",
    )
    made.add_argument(
        "--class-image-size", type=int, metavar="PX", help="longest side of the classes' view (224)"
    )
    made.add_argument(
        "--store-classes",
        type=count_or_all,
        metavar="N|all",
        help="class vectors kept an image (32)",
    )
    of_all = made.add_mutually_exclusive_group()
    of_all.add_argument(
        "--classes",
        type=numbers,
        metavar="ID,ID,...",
        help="a predefined class list for all (each photo's likeliest)",
    )
    of_all.add_argument(
        "--classes-from",
        metavar="PHOTOS",
        help="count the predefined class list from these representative queries, "
        "as many as --store-classes says (each photo's likeliest)",
    )
    made.add_argument(
        "--descriptor",
        choices=("classes", "regions", "both"),
        help="what the descriptor sums; classes is the paper's offline aggregation (both)",
    )
    made.add_argument(
        "--keypoints",
        type=int,
        metavar="N",
        help="keypoints kept an image, for rerank spatial; 0 for none (800)",
    )
    made.add_argument(
        "--compact",
        action="store_true",
        help="at most 30 kB a photo: fewer regions and keypoints, and one class",
    )
    made.add_argument(
        "--dim",
        type=int,
        metavar="D",
        help="dimensions of every vector (1024; of other networks 512)",
    )
    whitening = made.add_mutually_exclusive_group()
    whitening.add_argument(
        "--fit",
        nargs="?",
        const="",
        metavar="PHOTOS",
        help="fit the whitening on these photos (without a value: on the photos to index, which "
        "is worse than on others)",
    )
    whitening.add_argument(
        "--whitening", metavar="FILE", help="a whitening file or saved encoder (the one that ships)"
    )
    whitening.add_argument("--no-whitening", action="store_true", help="go without whitening")
    made.add_argument(
        "--class-rows",
        action="store_true",
        help="also keep a row a class vector, to search by class",
    )
    made.add_argument(
        "--precision",
        choices=("int4", "int8", "float16"),
        help="of the stored class and region vectors (int4; int8 takes twice the room, float16 "
        "four times)",
    )
    index_option(made, "FLAT")
    made.add_argument(
        "--paper-compat", action="store_true", help="do as the paper's scripts where they differ"
    )
    made.add_argument(
        "--network-dtype",
        choices=("float32", "bfloat16", "float16"),
        help="what the network computes in; bfloat16 is faster on GPUs, and by OpenVINO on "
        "processors made for it (float32)",
    )
    made.add_argument(
        "--resize-on",
        choices=("host", "device"),
        help="where photos are resized, by the CPU or where the network runs (host)",
    )


_SETTINGS = {
    "backbone": "backbone",
    "layer": "layer",
    "cams_from": "cams_from",
    "image_size": "image_size",
    "class_image_size": "class_image_size",
    "store_classes": "n_classes",
    "classes": "classes",
    "descriptor": "descriptor",
    "dim": "dim",
    "keypoints": "keypoints",
    "network_dtype": "network_dtype",
    "resize_on": "resize_on",
}


def encoder_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the encoder that were asked for."""
    from cwf_milvus.encode.settings import full_name

    settings = {
        setting: getattr(arguments, option)
        for option, setting in _SETTINGS.items()
        if getattr(arguments, option) is not None
    }
    if arguments.compact:
        from cwf_milvus.encode.settings import COMPACT  # --help need not wait for numpy

        settings = {**COMPACT, **settings}
    if "backbone" in settings:
        settings["backbone"] = full_name(settings["backbone"])
    return settings | ({"paper_compat": True} if arguments.paper_compat else {})


def new_encoder(arguments: argparse.Namespace, settings: dict[str, Any]) -> Any:
    """Return an encoder of these settings, fitted where that was asked for."""
    from cwf_milvus.encode.encoder import Encoder
    from cwf_milvus.encode.whitenings import Whitenings

    whitening: str | None = arguments.whitening or "default"
    if arguments.no_whitening:
        whitening = None
    if arguments.whitening:
        settings.setdefault("dim", Whitenings.from_file(arguments.whitening).dim)
    options = {
        "weights": arguments.weights,
        "device": arguments.device,
        "runtime": arguments.runtime,
        "whitening": whitening,
    }
    if arguments.max_pixels:
        options["max_pixels"] = arguments.max_pixels
    if arguments.classes_from:
        n = settings.pop("n_classes", 64)
        counted = Encoder(**settings, **options).predefine_classes(arguments.classes_from, n)
        settings["classes"] = counted
    encoder = Encoder(**settings, **options)
    if arguments.fit is not None:
        encoder.fit(
            arguments.fit or arguments.photos, progress=progress_bar(arguments.quiet, "fitting")
        )
    return encoder


def refuse_other_settings(
    collection: Any, settings: dict[str, Any], arguments: argparse.Namespace
) -> None:
    """Refuse what was asked for anew; the command that made a collection also goes on with it."""
    from cwf_milvus.encode.settings import settings_kept

    about = collection.sidecar.manifest
    kept = settings_kept(about["settings"]).to_dict()
    here = {
        **{name: list(v) if isinstance(v, tuple) else v for name, v in kept.items()},
        "whitening": about["whitening"],
        "class_rows": about["class_rows"],
        "precision": collection.layout.precision,
        "index": about.get("index"),
    }
    asked = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    if arguments.classes_from and here["classes"]:
        asked.pop("n_classes", None)  # it said how many classes to count
    elif arguments.classes_from:
        asked["classes"] = f"those from {arguments.classes_from}"
    if arguments.class_rows:
        asked["class_rows"] = True
    if arguments.precision:
        asked["precision"] = arguments.precision
    if arguments.index:
        asked["index"] = arguments.index
    fitted = str(here["whitening"]).startswith("fitted on")
    if fitted and arguments.fit is not None and here["dim"] < asked.get("dim", 0):
        del asked["dim"]  # the fit had too few photos for all of them
    if arguments.no_whitening:
        asked["whitening"] = "none"
    elif arguments.fit is not None and not fitted:
        asked["whitening"] = "one to be fitted"
    elif arguments.whitening:
        asked["whitening"] = _whitening_of_file(collection, arguments.whitening)
    other = {name: value for name, value in asked.items() if here[name] != value}
    if other:
        raise MismatchError(
            f"the collection {collection.name!r} was made with "
            + ", ".join(f"{name}={here[name]!r}" for name in other)
            + "; asked for was "
            + ", ".join(f"{name}={value!r}" for name, value in other.items())
            + ": leave these options out, or create another collection with --collection"
        )


def _whitening_of_file(collection: Any, file: str) -> str:
    """Return the words for a whitening file: the collection's own if it is the one in use."""
    from cwf_milvus.encode.whitenings import Whitenings

    found = Whitenings.from_file(file)
    encoder = collection.encoder
    used = encoder.whitenings
    if used is not None and found.used_at(encoder.settings).digest == used.digest:
        return str(encoder.whitening_origin)
    return f"{found.origin} ({file})"
