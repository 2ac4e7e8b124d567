"""What the service does and what it refuses, settled when it starts."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from cwf_milvus.checks import checked_count
from cwf_milvus.errors import SettingsError
from cwf_milvus.files import cache_folder

TOKEN = "CWF_MILVUS_SERVE_TOKEN"
"""The environment variable with the token: an option could be read in the list of processes."""


@dataclass(frozen=True)
class ServeSettings:
    """Settings of the service.

    Attributes:
        host: the address that it listens at.
        port: the port; 0 for a free one.
        token: who asks must know it; required at any address but loopback.
        names: further names by which it is reached, as the ``Host`` of a request.
        writable: take photos into the collections.
        added: the folder that these are kept in.
        allow_urls: search with photos by url, which the service then fetches.
        strip_exif: give originals coded anew, with nothing but their pixels.
        hide_paths: show no folder of a photo, and name it by a number of its own.
        max_bytes: of a photo that is sent.
        max_pixels: width x height of a photo that is sent.
        body_seconds: that a request's body may take to come, and its least pace is 64 KiB/s.
        decode_seconds: that decoding a photo may take, by the clock.
        searches: that are worked on at once.
        waiting: that may wait for their turn; more are sent away with 503.
        cache: the folder of the thumbnails; None to make each anew.
        cache_bytes: that they may take.

    Raises:
        SettingsError: a value that cannot be, or no token where one is required.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = field(default=None, repr=False)
    names: tuple[str, ...] = ()
    writable: bool = False
    added: Path = Path("added-photos")
    allow_urls: bool = False
    strip_exif: bool = False
    hide_paths: bool = False
    max_bytes: int = 32 * 2**20
    max_pixels: int = 64_000_000
    body_seconds: float = 60.0
    decode_seconds: float = 10.0
    searches: int = 16
    waiting: int = 48
    cache: Path | None = field(default_factory=lambda: cache_folder("thumbnails"))
    cache_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "searches"):
            checked_count(name, getattr(self, name))
        checked_count("waiting", self.waiting, 0)
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"port={self.port!r}: give a number from 0 to 65535")
        if self.token is not None and (len(self.token) < 16 or not self.token.isascii()):
            raise SettingsError(
                f"the token in {TOKEN} is too short, or not ASCII: give at least 16 letters and "
                "digits, as `openssl rand -hex 16` makes them"
            )
        if self.token is None and not is_loopback(self.host):
            raise SettingsError(
                f"{self.host!r} can be reached from other machines: set {TOKEN} to a secret of at "
                "least 16 letters and digits, which `openssl rand -hex 16` makes, or serve on "
                "127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
