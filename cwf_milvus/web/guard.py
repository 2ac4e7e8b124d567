"""What every request passes: whose it is, where it comes from, how much it sends, how slowly."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cwf_milvus.web.bodies import Bodies, Refused, drained
from cwf_milvus.web.settings import TOKEN, ServeSettings

COOKIE = "cwf_milvus_serve"
_RETRY_SECONDS = "2"
_OPEN = ("/healthz", "/readyz")  # for those who watch the service, who have no token
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """Lets requests through to the application that are meant for it, and come from its own page.

    A foreign ``Host`` is a name that somebody else had point to this address (DNS rebinding); a
    foreign ``Origin``, or ``Sec-Fetch-Site``, is another site's page in the same browser.

    Args:
        app: the application.
        settings: of the service.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self.app = app
        self.settings = settings
        self._names = {"localhost", settings.host.lower(), *(n.lower() for n in settings.names)}
        self._bodies = Bodies(settings)
        self._cookie = cookie_of(settings.token) if settings.token else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["Cache-Control"] = "no-store"
            await send(message)

        try:
            headers = Headers(scope=scope)
            self._check_host(headers)
            self._check_origin(scope, headers)
            if await self._log_in(scope, with_headers):
                return
            self._check_token(scope, headers)
            with self._bodies.bounded(scope["path"], headers, receive) as bounded:
                await self.app(scope, bounded, with_headers)
        except asyncio.CancelledError:  # the service ends, and this took too long
            if not started:
                ending = Refused(503, "the service is ending: try again when it is back")
                await _answer(with_headers, ending, Headers(scope=scope))
            raise
        except ClientDisconnect:  # in the middle of the body; nobody hears this, but it is counted
            if not started:
                gone = Refused(499, "who asked went away")
                await _answer(with_headers, gone, Headers(scope=scope))
        except Refused as refusal:
            if not started:
                if refusal.status == 413:
                    await drained(receive)
                await _answer(with_headers, refusal, Headers(scope=scope))

    def _check_host(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        try:
            name = urlsplit(f"//{hosts[0]}").hostname if len(hosts) == 1 else None
        except ValueError:
            name = None
        if name is None:
            raise Refused(400, "the request has no Host header, or not one: send the address")
        if name.rstrip(".") not in self._names and not _is_address(name):
            raise Refused(
                421,
                f"this service is not called {name[:100]!r}: open it by its address, or start it "
                "with --name for a name of its own",
            )

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        origin = headers.get("origin")
        # Whether http or https came to a proxy before this is not known here.
        if origin is not None and origin.lower().partition("://")[2] != headers["host"].lower():
            raise Refused(403, "the request comes from another site's page: open the service's own")
        site = headers.get("sec-fetch-site", "none")
        is_link = (
            scope["method"] == "GET"
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
            and not scope["path"].startswith("/api/")
        )
        if site not in ("none", "same-origin") and not is_link:
            raise Refused(403, "the request comes from another site's page: open the service's own")

    async def _log_in(self, scope: Scope, send: Send) -> bool:
        """Answer an address with a token in it by a cookie and the address without it."""
        if scope["method"] != "GET" or scope["path"] != "/" or not self.settings.token:
            return False
        asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if not any(name == "token" for name, _ in asked):
            return False
        given = next(value for name, value in asked if name == "token")
        if not _same(given, self.settings.token):
            raise Refused(401, "the token is another one: see what the service was started with")
        rest = urlencode([pair for pair in asked if pair[0] != "token"])
        cookie = f"{COOKIE}={self._cookie}; Path=/; HttpOnly; SameSite=Strict; Max-Age=2592000"
        if scope["scheme"] == "https":
            cookie += "; Secure"
        headers = {"Location": "/" + (f"?{rest}" if rest else ""), "Set-Cookie": cookie}
        await _send(send, 303, b"", headers)
        return True

    def _check_token(self, scope: Scope, headers: Headers) -> None:
        if not self.settings.token or scope["path"] in _OPEN:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _same(given.strip(), self.settings.token):
            return
        try:
            kept = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            kept = None
        if kept is None or not _same(kept.value, self._cookie):
            raise Refused(
                401,
                f"a token is needed: open /?token=... once with the value of {TOKEN} that the "
                "service was started with, or send it as 'Authorization: Bearer ...'",
            )


def cookie_of(token: str) -> str:
    """Return what the page's cookie holds in place of the token itself."""
    return hmac.new(token.encode(), COOKIE.encode(), hashlib.sha256).hexdigest()


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def _is_address(name: str) -> bool:
    """Tell an IP address, which nobody can have point elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _answer(send: Send, refusal: Refused, asked: Headers) -> None:
    body, kind = json.dumps({"error": refusal.reason}).encode(), "application/json"
    if "text/html" in asked.get("accept", ""):  # a person opened it
        body, kind = f"{refusal.reason}\n".encode(), "text/plain; charset=utf-8"
    headers = {"Content-Type": kind, "Connection": "close"}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if refusal.status == 503:
        headers["Retry-After"] = _RETRY_SECONDS
    await _send(send, refusal.status, body, headers)


async def _send(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    sent = {**headers, "Content-Length": str(len(body))}
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in sent.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
