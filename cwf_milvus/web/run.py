"""The service as a process: its socket, its signals, its last requests."""

from __future__ import annotations

import socket
import threading
import webbrowser
from collections.abc import Callable, Mapping

import uvicorn

from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import SettingsError
from cwf_milvus.web.app import create_app
from cwf_milvus.web.settings import TOKEN, ServeSettings

_LAST_REQUESTS = 10  # seconds that open requests have once the process is told to end
_BACKLOG = 128


def serve(
    collections: Mapping[str, InstanceCollection],
    settings: ServeSettings | None = None,
    *,
    say: Callable[[str], None] = print,
    open_browser: bool = False,
) -> None:
    """Serve until the process is told to end by SIGINT or SIGTERM.

    Requests that are open then are answered, for ten seconds; new ones are not taken.

    Args:
        collections: as in `create_app`.
        settings: as in `create_app`.
        say: told the address, once requests are taken.
        open_browser: show the page.

    Raises:
        SettingsError: the address cannot be had.
    """
    chosen = settings or ServeSettings()
    listener = _listen(chosen)
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                say(f"serving {', '.join(collections)} at {address}")
                if chosen.token:
                    say(f"open it once as {address}?token=... with the value of {TOKEN}")
                elif open_browser:
                    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    config = uvicorn.Config(
        create_app(collections, chosen),
        log_level="warning",
        access_log=False,  # addresses may hold a token
        server_header=False,
        timeout_graceful_shutdown=_LAST_REQUESTS,
        timeout_keep_alive=15,
        h11_max_incomplete_event_size=2**16,
        limit_concurrency=1000,
        http="h11",
        ws="none",
    )
    Server(config).run(sockets=[listener])


def _listen(settings: ServeSettings) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"cannot listen at {settings.host}:{settings.port} ({error.strerror}): give another "
            "--port, or 0 for a free one"
        ) from error
