"""Numbers that options are given as."""

from __future__ import annotations

import numpy as np

from cwf_milvus.errors import SettingsError


def checked_share(name: str, value: float) -> float:
    """Return a weight from 0 to 1; raises `SettingsError` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise SettingsError(f"{name}={value!r}: give a number from 0 to 1")
    return float(value)


def checked_count(name: str, value: int, least: int = 1) -> int:
    """Return a whole number of at least `least`; raises `SettingsError` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise SettingsError(f"{name}={value!r}: give a whole number of at least {least}")
    return int(value)


def checked_alpha(alpha: float) -> float:
    """Return alpha; raises `SettingsError` unless it is a number of at least 0."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha < 1000:
        raise SettingsError(f"alpha={alpha!r}: give a number of at least 0, such as 3")
    return float(alpha)
