"""Links from Towhee's operator folder to ours, so that it finds the operators by name."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cwf_milvus.errors import SettingsError

HUB = Path(__file__).parents[1] / "data" / "hub"
_AUTHOR = "cwf"


def operator_names() -> list[str]:
    """Return the names of the operators, which are those of their folders."""
    return sorted(path.parent.name for path in HUB.glob("*/README.md"))


def towhee_home() -> Path:
    """Return Towhee's folder: ``$TOWHEE_HOME``, or ``~/.towhee``."""
    return Path(os.environ.get("TOWHEE_HOME") or "~/.towhee").expanduser()


def install(home: str | Path | None = None) -> list[Path]:
    """Link the operators' folders into Towhee's; links of an earlier version are replaced.

    Args:
        home: Towhee's folder; None for `towhee_home`.

    Returns:
        The links. ``ops.cwf.NAME`` finds them with no import.

    Raises:
        SettingsError: something else is in a link's place, or the folder cannot be written.
    """
    links = {place: HUB / name for name, place in _places(home).items()}
    for place in links:
        if os.path.lexists(place) and not _is_ours(place):
            raise SettingsError(
                f"{str(place)!r} is there and is no link of cwf-milvus: move it away, then run "
                "this again"
            )
    for place, folder in links.items():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            place.symlink_to(folder, target_is_directory=True)
        except OSError as error:
            raise SettingsError(
                f"cannot link {str(place)!r} ({error.strerror}): name a folder that can be "
                "written, and where links can be made, in TOWHEE_HOME or with --home"
            ) from error
    return list(links)


def uninstall(home: str | Path | None = None) -> list[Path]:
    """Remove the links that `install` made, and the folders that are then empty.

    Args:
        home: as in `install`.

    Returns:
        The links that were removed. Whatever else is in their places stays.

    Raises:
        SettingsError: the folder cannot be written.
    """
    root = Path(home) if home is not None else towhee_home()
    removed = [place for place in _places(home).values() if _is_ours(place)]
    for place in removed:
        try:
            place.unlink()
        except OSError as error:
            raise SettingsError(f"cannot remove {str(place)!r} ({error.strerror})") from error
        with contextlib.suppress(OSError):  # a folder that is not empty stays
            for folder in place.parents:
                if folder == root:
                    break
                folder.rmdir()
    return removed


def _places(home: str | Path | None) -> dict[str, Path]:
    operators = (Path(home) if home is not None else towhee_home()) / "operators" / _AUTHOR
    return {
        name: operators / name.replace("_", "-") / "versions" / "main" for name in operator_names()
    }


def _is_ours(place: Path) -> bool:
    """Tell whether this is a link into some installation's folder of operators."""
    if not place.is_symlink():
        return False
    *above, hub, name = place.readlink().parts
    ours = hub == "hub" and "cwf_milvus" in above[-2:]  # in 0.1.0 the folder's own parent
    return ours and name in operator_names()
