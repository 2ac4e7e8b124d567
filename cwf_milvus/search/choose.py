"""Which stages a search runs: from names and numbers to `Stage` objects, and their turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, TypeAlias

from cwf_milvus.answers.hits import Hit, Query
from cwf_milvus.backbones.alone import alone
from cwf_milvus.errors import SettingsError
from cwf_milvus.search.fetch import fetch_vectors
from cwf_milvus.search.gallery import Gallery
from cwf_milvus.search.registry import AUTO, NONE, STAGES, stage_names
from cwf_milvus.search.stage import Context, Stage, is_own

Rerank: TypeAlias = str | Stage | Sequence[str | Stage] | None
"""The name of a stage that re-ranks, a stage, or several in their order; "auto" or "none"."""
Expand: TypeAlias = str | int | tuple[str, int] | Stage | None
"""The name of an expansion, with a number of hits or not; a number for "aqe"; or a stage."""

_GRAPH = "graph"


def chosen_stages(
    rerank: Rerank = AUTO,
    expand: Expand = AUTO,
    stages: Sequence[Stage] | None = None,
    gallery: Gallery | None = None,
) -> list[Stage]:
    """Return the stages that a search was asked for, in their order.

    Args:
        rerank: a name of `STAGES`, a `Stage`, or a list of these; "none" or None for none. "auto"
            is the best that the gallery can do: "regions", and "spatial" where keypoints are
            stored.
        expand: the name of an expansion, such a name with a number of hits (`("aqe", 5)` or
            `"aqe:5"`), a bare number for alpha expansion over that many, or a `Stage`; "none" or
            None for none. "auto" is "graph" where there is one and `rerank` is "auto" too.
        stages: in place of both, stages in any order.
        gallery: the photos that are searched, for "auto"; None for one with no more than vectors.

    Raises:
        SettingsError: an unknown name, a number out of range, or `stages` beside the others.
    """
    if stages is not None:
        if not (_is(AUTO, rerank) and _is(AUTO, expand)):
            raise SettingsError("give either stages, or rerank and expand: stages holds them all")
        return [_stage("stages", one) for one in stages]
    if _is(AUTO, expand):
        can = _is(AUTO, rerank) and _GRAPH in STAGES and gallery is not None and gallery.has_graph()
        expand = _GRAPH if can else None
    if _is(AUTO, rerank):
        can = gallery is not None and gallery.has_keypoints()
        rerank = ["regions", "spatial"] if can else "regions"
    wanted = rerank if isinstance(rerank, list | tuple) else [rerank]
    chosen = [_stage("rerank", one) for one in wanted if not (one is None or _is(NONE, one))]
    if not (expand is None or _is(NONE, expand)):
        after = {stage.name for stage in chosen}
        chosen.append(_expansion(expand, "classes" in after and "regions" not in after))
    return chosen


def _is(word: str, given: object) -> bool:
    return isinstance(given, str) and given == word


@alone()
def run_stages(
    stages: Sequence[Stage],
    queries: Sequence[Query],
    answers: Sequence[Sequence[Hit]],
    context: Context,
    candidates: int,
) -> list[list[Hit]]:
    """Run stages over the hits of some queries.

    What the stages need is fetched once for all queries; what a new search brings in between is
    fetched before the next stage. Each stage sees the first `candidates` hits; those after them
    follow in the order that they had. The query's own photo (its bytes are the query's) ends as the
    first: nothing can be more like it, whatever an expansion made of the query.

    Args:
        stages: in their order.
        queries: what was asked.
        answers: the hits of each query, best first.
        context: where the stages work.
        candidates: how many hits of each query a stage sees.

    Returns:
        The hits of each query, without vectors.
    """
    now = [list(hits) for hits in answers]
    for done, stage in enumerate(stages):
        kinds = {kind for later in stages[done:] if not later.fetches for kind in later.needed}
        heads = [hits[:candidates] for hits in now]
        if kinds and context.gallery is not None:
            heads = fetch_vectors(context.gallery, heads, kinds)
        after = frozenset(kind for later in stages[done + 1 :] for kind in later.needed)
        given = stage.run(queries, heads, replace(context, wanted=after))
        for i, head in enumerate(given):
            there = {hit.uri for hit in head} | {hit.uri for hit in heads[i]}
            tail = [hit for hit in now[i][candidates:] if hit.uri not in there]
            now[i] = [*head, *tail][: max(len(now[i]), context.depth)]
    if stages:
        now = [_own_first(query, hits) for query, hits in zip(queries, now, strict=True)]
    return [[hit.but(vectors=None) for hit in hits] for hits in now]


def _own_first(query: Query, hits: list[Hit]) -> list[Hit]:
    own = [hit for hit in hits if is_own(query, hit)]
    if not own:
        return hits
    best = max(hit.score for hit in hits)
    return [
        *(hit.but(score=best) for hit in own),
        *(hit for hit in hits if not is_own(query, hit)),
    ]


def _stage(option: str, wanted: object) -> Stage:
    if isinstance(wanted, Stage):
        return wanted
    if option == "rerank" and isinstance(wanted, str) and wanted in stage_names("rerank"):
        return _made(wanted)
    known = ", ".join([AUTO, NONE, *stage_names("rerank")])
    names = f"one of {known}, or " if option == "rerank" else ""
    raise SettingsError(f"{option}={wanted!r}: give {names}a Stage object")


def _expansion(wanted: object, of_classes: bool) -> Stage:
    if isinstance(wanted, Stage):
        return wanted
    name, hits = wanted, None
    if isinstance(wanted, str):
        name, _, digits = wanted.partition(":")
        if digits.isdecimal():
            hits = int(digits)
        elif ":" in wanted:
            name = None
        elif wanted.isdecimal():
            name, hits = "aqe", int(wanted)
    elif isinstance(wanted, int) and not isinstance(wanted, bool):
        name, hits = "aqe", wanted
    elif isinstance(wanted, list | tuple) and len(wanted) == 2:
        name, hits = wanted
    if not isinstance(name, str) or name not in stage_names("expand"):
        raise SettingsError(
            f"expand={wanted!r}: give {AUTO}, {NONE}, a number of hits, or one of "
            f"{', '.join(stage_names('expand'))}, alone or with a number of hits, such as "
            "('local', 3), or a Stage object"
        )
    count = STAGES[name].hits if hits is None else hits
    return _made(
        name, hits=count, **({"kind": "classes"} if name == "local" and of_classes else {})
    )


def _made(name: str, **options: Any) -> Stage:
    registered = STAGES[name]
    module, _, kind = registered.place.partition(":")
    made: Stage = getattr(import_module(f"cwf_milvus.search.{module}"), kind)(
        **registered.preset, **options
    )
    return made
