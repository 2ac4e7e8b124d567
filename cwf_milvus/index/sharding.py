"""A part of the photos for each of several workers that know nothing of each other."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from cwf_milvus.errors import SettingsError


@dataclass(frozen=True)
class Shard:
    """One of several parts of all photos, told by a hash of the uri alone.

    The parts of one count have no photo in common, and together have all, whatever each worker
    finds in its folders and whenever it runs.

    Attributes:
        number: which part, from 1.
        of: how many parts there are.

    Raises:
        SettingsError: no such part.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise SettingsError(
                f"shard {self.number}/{self.of}: give a part from 1 on, as in 1/8 to 8/8"
            )

    @classmethod
    def of_text(cls, text: str) -> Shard:
        """Return the part that a text such as ``3/8`` names.

        Raises:
            SettingsError: it names none.
        """
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if found is None:
            raise SettingsError(f"shard {text!r}: give a part of how many, as in 3/8")
        return cls(int(found[1]), int(found[2]))

    def has(self, uri: str) -> bool:
        """Tell whether a photo is in this part."""
        digest = hashlib.sha256(uri.encode(errors="surrogatepass")).digest()
        return int.from_bytes(digest[:8]) % self.of == self.number - 1
