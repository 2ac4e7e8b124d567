"""What pymilvus imports to tell whether vectors are scipy's sparse matrices."""

from __future__ import annotations

from pymilvus.client import utils


def no_sparse_matrices() -> None:
    """Spare pymilvus a second import of scipy.sparse, a third of a second, at the first search.

    For a program that gives it no sparse matrix in this process, as the command line: a host
    program may.
    """
    helper = getattr(utils, "SciPyHelper", None)
    if helper is not None and hasattr(helper, "_checked"):
        helper._checked = True
