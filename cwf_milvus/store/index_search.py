"""How thoroughly an index of the descriptors is searched where nobody says."""

from __future__ import annotations

_EF = 400
_NPROBE = 256
_SEARCH_LIST = 400


def search_params(index_type: str, limit: int) -> dict[str, int]:
    """Return an index's search parameters that find most of what FLAT finds.

    Milvus's own (``nprobe`` 8, say) find a third of the neighbours of such descriptors;
    ``benchmarks/server_index.py`` measures these, and docs/milvus.md has the table.

    Args:
        index_type: as Milvus names it.
        limit: the rows asked for, which some parameters may not be below.

    Returns:
        Empty for FLAT, and for types that are not known here.
    """
    if index_type.startswith("HNSW"):
        return {"ef": max(_EF, 2 * limit)}
    if index_type.startswith("IVF") or index_type == "SCANN":
        return {"nprobe": _NPROBE}
    if index_type == "DISKANN":
        return {"search_list": max(_SEARCH_LIST, 2 * limit)}
    return {}
