"""The user's own fields of each photo: from a mapping, a CSV file or a JSONL file."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from cwf_milvus.errors import SettingsError, quoted
from cwf_milvus.index.metadata_files import Entry, read_table
from cwf_milvus.photos.sources import uri_of
from cwf_milvus.store.told import Told

BESIDE = ("metadata.jsonl", "metadata.csv")
MetadataSource: TypeAlias = "str | os.PathLike[str] | Mapping[str, Mapping[str, Any]] | None"
"""A CSV or JSONL file, or uri, path or file name to fields; None to look beside the photos."""
_NAMED = 5  # rows that a message names


class Metadata:
    """Looks up the fields of a photo by its uri, its path in an indexed folder, or its name.

    Args:
        entries: what is said, each of a uri, path or file name.
        folders: the folders that relative paths may be in.
        source: what to call it in messages.
        beside: whether it is the folder's own, whose fields give way to those given.
        notices: what to tell of it already.
    """

    def __init__(
        self,
        entries: Iterable[Entry],
        folders: Sequence[str] = (),
        *,
        source: str = "the metadata",
        beside: bool = False,
        notices: Iterable[str] = (),
    ) -> None:
        self._entries: dict[str, Entry] = {}
        self._folders = [Path(folder) for folder in folders]
        self._source, self._beside = source, beside
        self._notices = list(notices)
        self._respelt: dict[str, Entry] = {}  # by uri
        twice = []
        for entry in entries:
            key = _shortest(entry.key or entry.name)
            if key in self._entries:
                twice.append(entry)
            self._entries[key] = entry
        self._tell(twice, "name a photo that an earlier one names, and count in its place")

    def __bool__(self) -> bool:
        return bool(self._entries)

    def of(self, uri: str) -> Told | None:
        """Return the fields of a photo; None where nothing is said of it."""
        entry = next(filter(None, map(self._entries.get, self._keys(uri))), None)
        entry = entry or self._respelt.get(uri)
        if entry is None:
            return None
        return Told(entry.fields, entry.fields if self._beside else ())

    def match(self, uris: Sequence[str]) -> list[str]:
        """Hold the rows against the photos of a run; returns what to tell of them.

        A row that fits a photo but for Unicode form, case or separators is taken for it, if it is
        the only one.

        Raises:
            SettingsError: a row that fits two photos.
        """
        fitting: defaultdict[str, list[str]] = defaultdict(list)
        others: defaultdict[str, set[str]] = defaultdict(set)
        for uri in uris:
            keys = self._keys(uri)
            key = next((key for key in keys if key in self._entries), None)
            if key is not None:
                fitting[key].append(uri)
            for key in keys:
                others[_alike(key)].add(uri)
        respelt, unknown = [], []
        named = {uri for found in fitting.values() for uri in found}
        for key, entry in self._entries.items():
            found = fitting.get(key) or sorted(others.get(_alike(key), set()) - named)
            if len(found) > 1:
                raise SettingsError(
                    f"{self._source}: {entry} fits {len(found)} photos, such as "
                    f"{quoted(found[0])} and {quoted(found[1])}: write the path of each"
                )
            if not found:
                unknown.append(entry)
            elif key not in fitting:
                self._respelt[found[0]] = entry
                respelt.append(entry)
        self._tell(
            respelt, "fit a photo but for Unicode form, case or separators, and were taken for it"
        )
        self._tell(unknown, f"name none of these {len(uris)} photos")
        return self._notices

    def _tell(self, entries: Sequence[Entry], what: str) -> None:
        if entries:
            shown = ", ".join(map(str, entries[:_NAMED])) + (", …" if entries[_NAMED:] else "")
            self._notices.append(f"{self._source}: rows that {what}: {len(entries)} ({shown})")

    def _keys(self, uri: str) -> list[str]:
        keys = [uri]
        for folder in self._folders:
            prefix = str(folder) + os.sep
            if uri.startswith(prefix):
                keys.append(uri[len(prefix) :])
        keys.append(uri.replace("\\", "/").rpartition("/")[2])
        return keys

    @classmethod
    def read(cls, source: MetadataSource, folders: Sequence[str] = ()) -> Metadata:
        """Read metadata from a mapping or a file; None looks beside the photos.

        Args:
            source: a mapping, or a ``.csv`` or ``.jsonl`` file whose rows have a column
                ``file_name`` (a name, a path in an indexed folder, or a uri) and any other fields,
                which a CSV gives as text, or as numbers where all of a column is;
                None for ``metadata.jsonl`` or ``metadata.csv`` in `folders`, where there is one.
            folders: the indexed folders.

        Raises:
            SettingsError: a file that cannot be read, or fields that are no mapping; names the
                file and the line, or the photo, at fault.
        """
        if isinstance(source, Mapping):
            return cls(_of_mapping(source), folders)
        if source is not None:
            table = read_table(Path(str(source)))
            return cls(
                table.entries,
                folders,
                source=str(source),
                notices=[f"{source}: {one}" for one in table.notices],
            )
        entries: list[Entry] = []
        notices = []
        files: list[str] = []
        for folder in folders:
            file = next((f for name in BESIDE if (f := Path(folder) / name).is_file()), None)
            if file is not None:
                table = read_table(file)
                files.append(str(file))
                entries += [
                    Entry(one.name, one.fields, one.line, uri_of(Path(folder) / one.name))
                    for one in table.entries
                ]
                notices += [f"{file}: {notice}" for notice in table.notices]
        return cls(entries, folders, source=", ".join(files), beside=True, notices=notices)


def _of_mapping(source: Mapping[str, Mapping[str, Any]]) -> Iterator[Entry]:
    for name, fields in source.items():
        if not isinstance(fields, Mapping):
            raise SettingsError(
                f"metadata of {str(name)!r} is {fields!r}: give a mapping of its fields"
            )
        yield Entry(uri_of(name) if isinstance(name, Path) else str(name), dict(fields))


def _shortest(name: str) -> str:
    """Return a path without ``./`` and the like; urls, and plain names, stay as they are."""
    return name if "://" in name or "/" not in name else posixpath.normpath(name)


def _alike(name: str) -> str:
    """Return what is the same for names that differ in Unicode form, case or separators alone."""
    return _shortest(unicodedata.normalize("NFC", name).casefold().replace("\\", "/"))
