"""A sweep as a picture; needs matplotlib, the extra `plots`."""

from __future__ import annotations

from pathlib import Path

from cwf_milvus.errors import SettingsError
from cwf_milvus.evaluation.paper.tables import Table
from cwf_milvus.files import holds_other


def plot_sweep(table: Table, path: str | Path) -> Path:
    """Draw mAP by number of classes, a curve for each whitening, as PNG; returns the path.

    Args:
        table: from `tables.sweep`, whose lines have settings.
        path: the file to write.

    Raises:
        SettingsError: matplotlib is not installed, the table is no sweep, or the file cannot be
            written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsError(
            "a plot needs matplotlib: pip install 'cwf-milvus[plots]', or leave --plot out"
        ) from error
    curves: dict[int, list[tuple[int, float]]] = {}
    for line in table.lines:
        if line.setting:
            curves.setdefault(line.setting["pca"], []).append((line.setting["classes"], line.value))
    if not curves:
        raise SettingsError(f"{table.title!r} is no sweep, and only a sweep is drawn: use --sweep")
    figure = Figure(figsize=(6, 4), layout="constrained")  # no pyplot: no display, no global state
    axes = figure.subplots()
    for pca, points in sorted(curves.items()):
        classes, values = zip(*sorted(points), strict=True)
        axes.plot(classes, values, marker="o", label=f"whitening from {pca} a photo")
    axes.set_xscale("log", base=2)
    ticks = sorted({n for points in curves.values() for n, _ in points})
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.set_xlabel("classes")
    axes.set_ylabel(table.unit)
    axes.set_title(table.title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    if holds_other(path, b"tEXtSoftware\0Matplotlib"):
        raise SettingsError(f"{str(path)!r} is there, and is no plot: name another file for it")
    try:
        figure.savefig(path, format="png", dpi=150)
    except OSError as error:
        raise SettingsError(
            f"cannot write {str(path)!r} ({error.strerror}): name a file that can be written"
        ) from error
    return Path(path)
