"""Defaults from a file: `cwf-milvus.toml` beside the photos, or in the user's own folder.

Anybody's folder may hold such a file. So it may name a place in Milvus Lite, a collection, and how
answers are shown, and nothing that removes, writes elsewhere, sends, or lifts a limit; those are
taken from the user's own file alone, and a token from neither.
"""

from __future__ import annotations

import argparse
import os
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cwf_milvus.errors import SettingsError, quoted

NAME = "cwf-milvus.toml"
_MOST_BYTES = 2**16
_LONGEST_LINE = 4_096  # a key of 20,000 parts takes a gigabyte to read
_PLACES = {"uri": "CWF_MILVUS_URI", "collection": "CWF_MILVUS_COLLECTION"}
_SHOWN = ["limit", "candidates", "rerank", "expand", "show", "min-certainty", "explain"]
_ANYWHERE = {"search": _SHOWN, "neighbours": ["limit"], "index": ["exif"]}
_OWN = {
    "search": [*_SHOWN, "max-pixels", "device"],
    "neighbours": ["limit"],
    "index": ["exif", "workers", "batch-size", "max-pixels", "device"],
}
"""Options that a file may give defaults for. Those that make a collection stay with it."""


@dataclass(frozen=True)
class Configuration:
    """What the configuration files say.

    Attributes:
        found: path of each file to what stands in it; a later one goes over an earlier.
    """

    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, beside: Sequence[str | Path]) -> Configuration:
        """Read the user's own file, and the first that lies in one of the folders `beside`.

        Raises:
            SettingsError: a file that cannot be used; names the key, never its value.
        """
        own, there = _own_file(), (Path(folder) / NAME for folder in beside)
        files = [(own, _OWN), (next(filter(os.path.lexists, there), None), _ANYWHERE)]
        return cls(
            {
                str(file): _checked(file, _parsed(file), allowed)
                for file, allowed in files
                if file is not None and os.path.lexists(file)
            }
        )

    def apply(self, commands: Mapping[str, argparse.ArgumentParser], given: Sequence[str]) -> None:
        """Make what the files say the defaults of the commands that have such options.

        Args:
            commands: name to parser.
            given: the words of the command line, which go over it, as the environment does.

        Raises:
            SettingsError: a value that the option does not take.
        """
        for file, settings in self.found.items():
            for key, value in settings.items():
                if not isinstance(value, dict):
                    if key not in _PLACES or _PLACES[key] not in os.environ:
                        for command in commands.values():
                            _set_default(command, key, value, given, file)
                    continue
                for name, one in value.items():
                    _set_default(commands[key], name, one, given, f"{file}: [{key}]")

    def shown(self) -> dict[str, dict[str, Any]]:
        """Return what the files say as it may be shown: without a password."""
        return {
            file: {
                key: re.sub(r"//[^/]*@", "//***@", value) if key == "uri" else value
                for key, value in settings.items()
            }
            for file, settings in self.found.items()
        }


def _own_file() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "cwf-milvus" / NAME


def _parsed(file: Path) -> dict[str, Any]:
    try:
        status = file.stat()
        if stat.S_ISREG(status.st_mode) and status.st_size <= _MOST_BYTES:
            text = file.read_text(encoding="utf-8")
            if max(map(len, text.splitlines()), default=0) > _LONGEST_LINE:
                raise tomllib.TOMLDecodeError(f"a line of more than {_LONGEST_LINE:,} characters")
            return tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or (
            str(error) if isinstance(error, tomllib.TOMLDecodeError) else type(error).__name__
        )
        raise SettingsError(f"cannot read {quoted(str(file))} as TOML: {reason}") from error
    raise SettingsError(f"{quoted(str(file))} is no file of at most {_MOST_BYTES:,} bytes")


def _checked(
    file: Path, settings: dict[str, Any], allowed: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    where, top = quoted(str(file)), (*_PLACES, "quiet", "verbose")
    for key, value in settings.items():
        if key == "token":
            raise SettingsError(f"{where}: a token is taken from no file: set MILVUS_TOKEN")
        if isinstance(value, dict) and key in allowed:
            for name in value:
                _known(where, f"[{key}] {name}", name.replace("_", "-") in allowed[key], allowed)
        else:
            _known(where, key, key in top and not isinstance(value, dict), allowed)
    for key in _PLACES.keys() & settings.keys():
        if not isinstance(settings[key], str):
            raise SettingsError(f"{where}: {key}: give a text")
    place = settings.get("uri")
    if place is not None and place.startswith(("http://", "https://")):
        if allowed is _ANYWHERE:
            raise SettingsError(
                f"{where} names a server, which would be sent your token and descriptors: give "
                f"--uri, or write it in your own {_own_file()}"
            )
    elif place is not None:
        return settings | {"uri": str(file.absolute().parent / Path(place).expanduser())}
    return settings


def _known(where: str, key: str, is_known: bool, allowed: Mapping[str, Sequence[str]]) -> None:
    if not is_known:
        own = f" (your own {_own_file()} may say more)" if allowed is _ANYWHERE else ""
        tables = "; ".join(f"[{name}] {', '.join(keys)}" for name, keys in allowed.items())
        raise SettingsError(
            f"{where}: {key[:80]!r} cannot be set here; what can: uri, collection, quiet, verbose; "
            f"{tables}{own}"
        )


def _set_default(
    command: argparse.ArgumentParser, key: str, value: object, given: Sequence[str], where: str
) -> None:
    option = f"--{key.replace('_', '-')}"
    action = next((one for one in command._actions if option in one.option_strings), None)
    if action is None or (key in _PLACES and action.default is None):
        return  # the --uri of evaluate is a place for its own collections alone
    adds_up = isinstance(action, argparse._AppendAction)
    if adds_up and any(word.partition("=")[0] == option for word in given):
        return  # what is given would be added to it
    try:
        if adds_up or action.nargs == "+":
            several = value if isinstance(value, list) else [value]
            default: object = [_as_option(action, one) for one in several]
        else:
            default = _as_option(action, value)
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise SettingsError(f"{where}: {key}: {error}") from error
    command.set_defaults(**{action.dest: default})


def _as_option(action: argparse.Action, value: object) -> object:
    """Return a value as the option's own text would be taken; raises ValueError."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError("give true or false")
        return value
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        value = ",".join(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("give a text or a number")
    text = str(value)
    return action.type(text) if callable(action.type) else text
