"""`cwf-milvus serve`: the page where people look, and the same over HTTP for programs."""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cwf_milvus.cli.options import OK, add_command, collection_options, network_options, token
from cwf_milvus.errors import SettingsError

_PORT = 8765


def add_serve(commands: Any) -> None:
    """Add the command and its options."""
    command = add_command(
        commands, "serve", _serve, "show the page where people search, and answer over HTTP"
    )
    collection_options(command, several=True)
    command.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen at (%(default)s); any but loopback needs a token in the "
        "environment variable CWF_MILVUS_SERVE_TOKEN",
    )
    command.add_argument("--port", type=int, default=_PORT, help="(%(default)s); 0 for a free one")
    command.add_argument(
        "--name",
        action="append",
        default=[],
        help="a further name by which the service is reached; may be given several times (none)",
    )
    command.add_argument("--open", action="store_true", help="open the page in the browser")
    command.add_argument(
        "--writable", action="store_true", help="let photos be dropped into the collection"
    )
    command.add_argument(
        "--added",
        metavar="DIR",
        default="added-photos",
        help="the folder where such photos are kept (%(default)s)",
    )
    command.add_argument(
        "--allow-urls", action="store_true", help="fetch query photos by http(s) url"
    )
    command.add_argument(
        "--strip-exif",
        action="store_true",
        help="give originals coded anew, without place, date or camera",
    )
    command.add_argument("--hide-paths", action="store_true", help="show no folder of any photo")
    network_options(command)


def _serve(arguments: argparse.Namespace) -> int:
    from cwf_milvus.web.memory import keep_memory
    from cwf_milvus.web.settings import TOKEN, ServeSettings

    keep_memory()
    settings = ServeSettings(
        host=arguments.host,
        port=arguments.port,
        token=os.environ.get(TOKEN) or None,
        names=tuple(arguments.name),
        writable=arguments.writable,
        added=Path(arguments.added).expanduser().absolute(),
        allow_urls=arguments.allow_urls,
        strip_exif=arguments.strip_exif,
        hide_paths=arguments.hide_paths,
    )
    try:
        from cwf_milvus.web.run import serve
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"the service needs {error.name}, which is not installed: pip install "
            "'cwf-milvus[serve]'"
        ) from error
    from cwf_milvus.collection import InstanceCollection  # torch takes seconds

    with ExitStack() as opened:
        collections = {
            name: opened.enter_context(
                InstanceCollection.open(
                    arguments.uri,
                    name,
                    token=token(),
                    weights=arguments.weights,
                    device=arguments.device,
                )
            )
            for name in arguments.collection
        }
        serve(collections, settings, open_browser=arguments.open)
    return OK
