"""Where code lives and what imports what: the contract, and all imports walked once more."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

from cwf_milvus.encode.encoding import ARRAYS, KINDS, Encoding, Vectors
from cwf_milvus.search.registry import STAGES
from cwf_milvus.store.kinds import STORED
from cwf_milvus.store.refusals import SIDES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cwf_milvus"
DOORS = {"cwf_milvus.rerank"}  # a public name for what stands elsewhere


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


HUB = PACKAGE / "data" / "hub"  # folders as Towhee wants them, loaded by it alone
FILES = {
    module_of(file): file for file in sorted(PACKAGE.rglob("*.py")) if not file.is_relative_to(HUB)
}
TREES = {name: ast.parse(file.read_text()) for name, file in FILES.items()}


def named_in(name: str) -> Iterator[str]:
    """Yield every module that a file imports, at once or later, by statement or by a text."""
    own = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = own.split(".")[: len(own.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            yield from (
                full if (full := f"{base}.{alias.name}") in FILES else base for alias in node.names
            )
    yield from imported_by_text(name)


def imported_by_text(name: str) -> Iterator[str]:
    """Yield the modules that ``import_module(f"cwf_milvus.x.{place}")`` can import."""
    texts = {
        node.value.partition(":")[0]
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    if name == "cwf_milvus.search.choose":  # the places that it imports are named in the registry
        texts |= {stage.place.partition(":")[0] for stage in STAGES.values()}
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            asked = node.args[0]
            if not isinstance(asked, ast.JoinedStr):
                continue  # a name that a person gives
            prefix = str(ast.literal_eval(asked.values[0]))
            assert prefix.startswith("cwf_milvus."), f"{name}: {ast.unparse(node)}"
            found = {prefix + text for text in texts} & FILES.keys()
            assert found, f"{name}: {ast.unparse(node)} imports nothing that is there"
            yield from found


IMPORTS = {name: {one for one in named_in(name) if one in FILES} - {name} for name in FILES}


def test_the_contract_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == 0


def test_the_contract_places_every_room_that_there_is() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (one for one in contracts["contracts"] if one.get("exhaustive"))
    placed = {room for layer in layers["layers"] for room in re.findall(r"\w+", layer)}
    assert placed == {name.split(".")[1] for name in FILES if "." in name}
    assert "exclude_type_checking_imports" not in contracts
    assert not any("ignore_imports" in one for one in contracts["contracts"])


def test_no_two_files_import_each_other_directly_or_in_a_ring() -> None:
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(" > ".join(reversed(error.args[1])))


def test_places_named_in_texts_count_as_imports() -> None:
    assert "cwf_milvus.search.seen_again" in IMPORTS["cwf_milvus.search.choose"]
    assert "cwf_milvus.encode.encoder" in IMPORTS["cwf_milvus"]
    assert "cwf_milvus.evaluation.datasets.truth" in IMPORTS["cwf_milvus.evaluation"]


def test_at_most_a_dozen_packages_and_a_dozen_modules_stand_at_the_top() -> None:
    packages = [one for one in PACKAGE.iterdir() if (one / "__init__.py").is_file()]
    modules = [one for one in PACKAGE.glob("*.py") if one.name != "__init__.py"]
    assert len(packages) <= 12, sorted(one.name for one in packages)
    assert len(modules) <= 12, sorted(one.name for one in modules)


def test_every_package_says_in_a_sentence_what_stands_inside() -> None:
    for name in (name for name, file in FILES.items() if file.name == "__init__.py"):
        first = (ast.get_docstring(TREES[name]) or "").partition("\n\n")[0]
        assert first.endswith("."), f"{name}: {first!r}"
        assert len(re.findall(r"\.(?:\s|$)", first)) == 1, f"{name}: {first!r}"


def test_a_module_is_one_room_of_at_most_400_lines() -> None:
    lines = {name: len(file.read_text().splitlines()) for name, file in FILES.items()}
    assert not {name: n for name, n in lines.items() if n > 400}


def test_no_module_only_forwards() -> None:
    for name, file in FILES.items():
        if file.name in ("__init__.py", "__main__.py") or name in DOORS:
            continue
        own = [
            node
            for node in TREES[name].body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            or (isinstance(node, ast.Assign | ast.AnnAssign) and "__all__" not in ast.unparse(node))
        ]
        assert own, f"{name} defines nothing of its own"


def test_every_side_collection_is_named_among_the_refused_suffixes() -> None:
    suffixes = [
        ast.literal_eval(node.value)
        for tree in TREES.values()
        for kind in ast.walk(tree)
        if isinstance(kind, ast.ClassDef) and "SideCollection" in map(ast.unparse, kind.bases)
        for node in kind.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "suffix"
    ]
    assert sorted(suffixes) == sorted(SIDES)


def test_every_kind_of_vectors_is_named_in_each_of_its_rooms() -> None:
    names = {field.name for field in fields(Encoding)}
    assert tuple(STORED) == KINDS == tuple(ARRAYS)
    for kind in KINDS:
        assert STORED[kind].kind == kind
        assert set(ARRAYS[kind]) <= names & {field.name for field in fields(Vectors)}
