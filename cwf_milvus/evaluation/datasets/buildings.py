"""Oxford5k and Paris6k (Philbin et al., CVPR 2007 and 2008), and both revisited (CVPR 2018).

The images may lie in one folder or in one for each building, anywhere below the root: they are
found by their file names, which are unique. Names in the ground truth have to be of the same
pattern, so that no name in it can lead out of the root.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwf_milvus.errors import SettingsError
from cwf_milvus.evaluation.datasets.pickles import as_list, read_plain_pickle
from cwf_milvus.evaluation.datasets.truth import (
    SETUPS,
    Dataset,
    QueryTruth,
    assemble,
    by_stem,
    checked_box,
    photos_among,
    walk,
)

CORRUPT_PARIS = frozenset(
    {
        "paris_louvre_000136",
        "paris_louvre_000146",
        "paris_moulinrouge_000422",
        "paris_museedorsay_001059",
        "paris_notredame_000188",
        "paris_pantheon_000284",
        "paris_pantheon_000960",
        "paris_pantheon_000974",
        "paris_pompidou_000195",
        "paris_pompidou_000196",
        "paris_pompidou_000201",
        "paris_pompidou_000467",
        "paris_pompidou_000640",
        "paris_sacrecoeur_000299",
        "paris_sacrecoeur_000330",
        "paris_sacrecoeur_000353",
        "paris_triomphe_000662",
        "paris_triomphe_000833",
        "paris_triomphe_000863",
        "paris_triomphe_000867",
    }
)
"""Photos that are damaged in the Paris release (its page lists them in corrupt.txt)."""

_QUERY_SUFFIX = "_query.txt"
_OXFORD_PREFIX = "oxc1_"  # in Oxford's query files only; the photos' names are without it


@dataclass(frozen=True)
class _City:
    pattern: re.Pattern[str]
    n_images: int  # of the release, without the corrupt ones
    corrupt: frozenset[str] = frozenset()


_CITIES = {
    "oxford5k": _City(re.compile(r"(?!paris_)[a-z_]+_[0-9]{6}"), 5063),
    "paris6k": _City(re.compile(r"paris_[a-z_]+_[0-9]{6}"), 6392, CORRUPT_PARIS),
}
_N_QUERIES = {"oxford5k": 55, "paris6k": 55, "roxford5k": 70, "rparis6k": 70}


def load_oxford5k(root: str | Path, distractors: str | Path | None = None) -> Dataset:
    """Oxford5k: 5063 photos, 55 queries with a box each; the queries stay in the database.

    Args:
        root: a folder with the photos and the files `*_query.txt`, `*_good.txt`, `*_ok.txt` and
            `*_junk.txt` anywhere below it. Good and ok photos are positive.
        distractors: a folder of further photos to search among (Oxford105k).

    Raises:
        SettingsError: a ground-truth file is missing or malformed, or no photo is there.
    """
    return _load_original("oxford5k", "oxford105k", root, distractors)


def load_paris6k(root: str | Path, distractors: str | Path | None = None) -> Dataset:
    """Paris6k: 6392 photos, 55 queries with a box each; the queries stay in the database.

    The 20 photos of the release that are corrupt are skipped, named in `Dataset.skipped`, and
    taken out of the ground truth. Arguments and errors as for `load_oxford5k`.
    """
    return _load_original("paris6k", "paris106k", root, distractors)


def load_revisited(root: str | Path, name: str, distractors: str | Path | None = None) -> Dataset:
    """ROxford5k or RParis6k: 4993 or 6322 photos, 70 queries that are not among them.

    Args:
        root: a folder with `gnd_<name>.pkl` and the photos of Oxford5k or Paris6k below it.
        name: "roxford5k" or "rparis6k".
        distractors: a folder of further photos to search among (such as R1M).

    Raises:
        SettingsError: the ground truth is missing, malformed, or more than plain data (nothing in
            it is executed), or no photo is there.
    """
    if name not in ("roxford5k", "rparis6k"):
        raise SettingsError(f"{name!r} is not revisited; choose roxford5k or rparis6k")
    city = _CITIES[name[1:]]
    files = walk(root, leave_out=distractors)
    wanted = f"gnd_{name}.pkl"
    found = [path for path in files.values() if path.name == wanted]
    if not found:
        raise SettingsError(f"no {wanted} below {str(root)!r}; put it beside the photos")
    truth = read_plain_pickle(found[0])
    where = repr(str(found[0]))
    if not isinstance(truth, dict):
        raise SettingsError(f"{where} holds no dict with imlist, qimlist and gnd")
    stems = _stems(truth.get("imlist"), f"{where}: imlist", city)
    query_stems = _stems(truth.get("qimlist"), f"{where}: qimlist", city)
    judged = as_list(truth.get("gnd"))
    if judged is None or len(judged) != len(query_stems):
        raise SettingsError(f"{where}: gnd must have one entry for each of qimlist")
    if len(set(stems)) < len(stems):
        raise SettingsError(f"{where}: imlist has a name twice")
    known = {*stems, *query_stems}
    names, surplus = by_stem(
        photos_among(files), lambda stem: stem in known or stem in city.corrupt
    )
    images = [names.get(stem, f"{stem}.jpg") for stem in stems]
    queries = []
    for number, (stem, entry) in enumerate(zip(query_stems, judged, strict=True)):
        here = f"{where}: gnd[{number}]"
        if not isinstance(entry, dict):
            raise SettingsError(f"{here} is no dict with bbx, easy, hard and junk")
        easy, hard, junk = (
            _chosen(entry.get(level), images, f"{here}: {level}")
            for level in ("easy", "hard", "junk")
        )
        queries.append(
            QueryTruth(
                image=names.get(stem, f"{stem}.jpg"),
                box=checked_box(as_list(entry.get("bbx")) or [], f"{here}: bbx"),
                positives=(easy | hard) - junk,
                junk=junk,
                group=stem.rpartition("_")[0],
                hard=hard - junk,
            )
        )
    return assemble(
        name,
        files={known_as: files[known_as] for known_as in names.values()},
        images=images,
        queries=queries,
        surplus=surplus,
        skipped=_corrupt(names, city),
        expected={"images": city.n_images - _N_QUERIES[name], "queries": _N_QUERIES[name]},
        distractors=distractors,
        setups=SETUPS,
    )


def _load_original(
    name: str, enlarged: str, root: str | Path, distractors: str | Path | None
) -> Dataset:
    city = _CITIES[name]
    files = walk(root, leave_out=distractors)
    names, surplus = by_stem(photos_among(files), city.pattern.fullmatch)
    texts = {relative: path for relative, path in files.items() if path.suffix == ".txt"}
    queries: dict[str, QueryTruth] = {}
    for relative, path in texts.items():
        if not relative.endswith(_QUERY_SUFFIX):
            continue
        key = path.name.removesuffix(_QUERY_SUFFIX)
        if key in queries:
            raise SettingsError(
                f"two ground truths below {str(root)!r}: {relative!r} is there twice; keep one"
            )
        queries[key] = _read_query(relative.removesuffix(_QUERY_SUFFIX), texts, names, city)
    if not queries:
        raise SettingsError(
            f"no *{_QUERY_SUFFIX} below {str(root)!r}; put the ground truth of {name} there"
        )
    return assemble(
        name if distractors is None else enlarged,
        files={known_as: files[known_as] for known_as in names.values()},
        images=[known_as for stem, known_as in names.items() if stem not in city.corrupt],
        queries=queries.values(),
        surplus=surplus,
        skipped=_corrupt(names, city),
        expected={"images": city.n_images, "queries": _N_QUERIES[name]},
        distractors=distractors,
    )


def _read_query(
    key: str, texts: Mapping[str, Path], names: Mapping[str, str], city: _City
) -> QueryTruth:
    """One query from its four files; `key` is what their paths have in common."""
    fields = _read(f"{key}{_QUERY_SUFFIX}", texts).split()
    if len(fields) != 5:
        raise SettingsError(
            f"{key + _QUERY_SUFFIX!r} must hold a name and four numbers; it has {len(fields)} words"
        )
    (stem,) = _stems([fields[0].removeprefix(_OXFORD_PREFIX)], repr(key + _QUERY_SUFFIX), city)
    try:
        box = [float(value) for value in fields[1:]]
    except ValueError:
        box = []
    listed = {}
    for level in ("good", "ok", "junk"):
        path = f"{key}_{level}.txt"
        stems = _stems(_read(path, texts).split(), repr(path), city)
        listed[level] = {names.get(s, f"{s}.jpg") for s in stems if s not in city.corrupt}
    return QueryTruth(
        image=names.get(stem, f"{stem}.jpg"),
        box=checked_box(box, repr(key + _QUERY_SUFFIX)),
        positives=frozenset((listed["good"] | listed["ok"]) - listed["junk"]),
        junk=frozenset(listed["junk"]),
        group=Path(key).name.rpartition("_")[0] or None,
    )


def _read(relative: str, texts: Mapping[str, Path]) -> str:
    if relative not in texts:
        raise SettingsError(f"the ground truth is incomplete: {relative!r} is missing")
    try:
        return texts[relative].read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {relative!r}: {error}") from error


def _stems(values: Any, where: str, city: _City) -> list[str]:
    stems = as_list(values)
    if stems is None:
        raise SettingsError(f"{where} must be a list of names")
    for stem in stems:
        if not isinstance(stem, str):
            raise SettingsError(f"{where} holds a {type(stem).__name__}, and names are needed")
        if not city.pattern.fullmatch(stem):
            raise SettingsError(
                f"{where} names {stem[:80]!r}, which is no photo of this dataset; "
                "is this the ground truth of another?"
            )
    return stems


def _chosen(positions: Any, images: list[str], where: str) -> frozenset[str]:
    numbers = as_list(positions)
    if numbers is None:
        raise SettingsError(f"{where} must be a list of positions in imlist")
    for number in numbers:
        if not isinstance(number, int) or not 0 <= number < len(images):
            raise SettingsError(
                f"{where} holds a {type(number).__name__} that is no position in imlist, "
                f"which has {len(images)} names"
            )
    return frozenset(images[number] for number in numbers)


def _corrupt(names: Mapping[str, str], city: _City) -> dict[str, str]:
    reason = "known to be corrupt in the release"
    return {names[stem]: reason for stem in sorted(city.corrupt) if stem in names}
