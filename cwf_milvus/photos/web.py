"""Photos by http and https, within a number of bytes and a time, from whom one would expect."""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from typing import Any

from cachetools import TTLCache

from cwf_milvus.errors import ImageError, quoted
from cwf_milvus.photos.limits import MAX_BYTES

SECONDS = 60.0
"""In all, from the first byte asked for to the last."""
_PATIENCE = 15.0  # seconds without a byte
_REDIRECTS = 5
_KEPT_SECONDS = 600.0

_kept: TTLCache[str, bytes] = TTLCache(MAX_BYTES, _KEPT_SECONDS, getsizeof=len)
_keeping = threading.Lock()
_reading = [threading.Lock() for _ in range(64)]  # by url, so that one is not read twice at once


def is_web(url: str) -> bool:
    """Tell an http or https url, without a chain of filesystems other than "simplecache"."""
    bare = re.sub(r"^(https?://)\[[^\]/]*", r"\1", _bare(url).lower())  # ::1 is an address
    return bare.startswith(("http://", "https://")) and "::" not in bare.partition("?")[0]


def kept_web(url: str, max_bytes: int) -> bytes:
    """Read as `read_web`, and keep for ten minutes: of an archive, many photos are asked for.

    What is kept has at most `MAX_BYTES` in all.

    Raises:
        ImageError: as `read_web`, or it has more than `max_bytes`.
    """
    with _reading[hash(url) % len(_reading)]:
        with _keeping:
            data: bytes | None = _kept.get(url)
        if data is None:
            data = read_web(url, max_bytes)
            if len(data) > max_bytes:
                raise ImageError(
                    f"{quoted(url)} is larger than {max_bytes:,} bytes; download and unpack it"
                )
            with _keeping, suppress(ValueError):  # larger than all that may be kept
                _kept[url] = data
    return data


def read_web(url: str, max_bytes: int, *, public_only: bool = False) -> bytes:
    """Read what an http or https url gives, up to one byte more than `max_bytes`.

    A few redirects are followed, to http and https alone; one from a public host to an address
    of a local network is refused, so that nobody reaches with a url what only this machine may.
    Proxies of the environment are used; what they may reach is their affair.

    Args:
        url: what to read.
        max_bytes: as above.
        public_only: refuse addresses of local networks altogether: the url is a stranger's.

    Raises:
        ImageError: it cannot be had, answers with an error, or takes longer than `SECONDS`.
    """
    url = _bare(url)
    with _Deadline(SECONDS, public_only) as deadline:
        opener = urllib.request.build_opener(
            _handler(urllib.request.HTTPHandler, http.client.HTTPConnection, deadline),
            _handler(urllib.request.HTTPSHandler, http.client.HTTPSConnection, deadline),
            _Redirects(),
        )
        parts: list[bytes] = []
        left = max_bytes + 1
        try:
            request = urllib.request.Request(_escaped(url), headers={"User-Agent": "cwf-milvus"})
            with opener.open(request, timeout=_PATIENCE) as answer:
                while left > 0 and (part := answer.read(min(left, 2**20))):
                    parts.append(part)
                    left -= len(part)
                if left > 0 and answer.length:
                    raise OSError(f"the answer ends {answer.length:,} bytes too early")
        except Exception as error:  # of http.client, ssl, urllib and the system
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            raise ImageError(_message(url, error, deadline.passed)) from error
    if deadline.passed:  # some answers end without an error when they are cut off
        raise ImageError(_message(url, TimeoutError(), True))
    return b"".join(parts)


class _Deadline:
    """Shuts the connections of a request when its time is over, whatever they wait for."""

    def __init__(self, seconds: float, public_only: bool) -> None:
        self.passed = False
        self.public_only = public_only
        self.was_public = False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        for one in self._sockets:
            one.close()

    def _end(self) -> None:
        self.passed = True
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def watch(self, connected: socket.socket, through_proxy: bool) -> None:
        """Take a new connection; refuses one that leads from outside to the inside."""
        self._sockets.append(connected.dup())  # TLS takes the socket itself over
        if self.passed:
            raise TimeoutError
        peer = ipaddress.ip_address(connected.getpeername()[0].partition("%")[0])
        is_public = (getattr(peer, "ipv4_mapped", None) or peer).is_global
        if not (is_public or through_proxy) and (self.was_public or self.public_only):
            connected.close()
            if self.was_public:
                raise OSError("it leads from a public host into a local network")
            raise OSError("it is an address of a local network, which is not read here")
        self.was_public = self.was_public or (is_public and not through_proxy)


def _handler(kind: Any, connection: Any, deadline: _Deadline) -> Any:
    """Return a handler of urllib whose connections the deadline watches."""

    class Handler(kind):
        def do_open(self, _: object, request: Any, **options: Any) -> Any:
            def connect(*arguments: Any, **more: Any) -> Any:
                made = connection(*arguments, **more)
                create = made._create_connection

                def watched(*address: Any) -> socket.socket:
                    connected: socket.socket = create(*address)
                    deadline.watch(connected, through_proxy=request.has_proxy())
                    return connected

                made._create_connection = watched
                return made

            return super().do_open(connect, request, **options)

    return Handler()


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = _REDIRECTS
    max_repeats = 1

    def redirect_request(self, request, answer, code, message, headers, url):  # type: ignore[no-untyped-def]
        if not url.lower().startswith(("http://", "https://")):
            answer.close()
            raise urllib.error.URLError(f"it leads to {quoted(url)}")
        return super().redirect_request(request, answer, code, message, headers, url)


def _bare(url: str) -> str:
    return re.sub("^(simplecache::)+", "", url, flags=re.IGNORECASE)


def _escaped(url: str) -> str:
    """Return a url with spaces and letters of its path and query percent-encoded."""
    parts = urllib.parse.urlsplit(url)
    safe = "%/:=&?~+!$,;'@()*[]"
    path, query = (urllib.parse.quote(part, safe=safe) for part in (parts.path, parts.query))
    return parts._replace(path=path, query=query, fragment="").geturl()


def _message(url: str, error: Exception, late: bool) -> str:
    start = f"cannot read {quoted(url)}: "
    if late:
        return f"{start}it took more than {SECONDS:g} seconds; download it first"
    if isinstance(error, urllib.error.HTTPError):
        words = " ".join(str(error.reason).split())[:200]
        return f"{start}the host answers {error.code} {words}; check the url"
    if isinstance(error, urllib.error.URLError):
        error = error.reason if isinstance(error.reason, Exception) else error
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{start}{reason[:200]}; check the url, and that its host can be reached"
