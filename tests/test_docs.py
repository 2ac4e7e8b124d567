"""What the documentation says, held against the command line's own help, the code and the files."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import pytest
from doc_tables import with_commands, with_table
from small_encoders import CHELSEA, COFFEE, ROCKET

from cwf_milvus.cli.program import build_parser, commands_of
from cwf_milvus.operators import CamRerank
from cwf_milvus.search.choose import chosen_stages
from cwf_milvus.search.registry import STAGES, stage_names
from cwf_milvus.store.layout import Layout

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "cwf_milvus" / "data" / "hub").glob("*/README.md"),
    ]
)
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}
EXAMPLES = {f"examples/{f.name}": f.read_text() for f in (ROOT / "examples").glob("*.py")}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
NAMES = sorted(TEXTS)


COMMANDS = commands_of(build_parser())
OPTIONS = {name: set(parser._option_string_actions) for name, parser in COMMANDS.items()}


def prose(text: str) -> str:
    return BLOCK.sub("", text)


def commands_in(text: str) -> Iterator[list[str]]:
    """Yield the words of every command of ours, in blocks and in running text."""
    lines = [
        line
        for kind, block in BLOCK.findall(text)
        if kind in ("bash", "sh", "console", "")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    lines += re.findall(r"`([^`]+)`", prose(text))
    for line in lines:
        match = re.search(r"(?:^|/|&& |\$ )cwf-milvus (.*)", line)
        if match:
            yield shlex.split(match[1].replace("...", "").replace("…", ""), comments=True)


@pytest.mark.parametrize("name", [*NAMES, *sorted(EXAMPLES)])
def test_every_command_and_option_is_one_that_the_command_line_has(name: str) -> None:
    text = TEXTS.get(name) or EXAMPLES[name].replace("\ncwf-milvus", "\n`cwf-milvus")
    if name in EXAMPLES:
        text = re.sub(r"\n`(cwf-milvus .*)", r"\n`\1`", text)
    for words in commands_in(text):
        if not words or words[0].startswith("-"):
            assert not words or words[0] in build_parser()._option_string_actions, words
            continue
        assert words[0] in COMMANDS, f"cwf-milvus {words[0]}"
        for word in words[1:]:
            if re.match(r"--?[a-z]", word):
                option = word.partition("=")[0]
                assert option in OPTIONS[words[0]], f"cwf-milvus {words[0]} {option}"


@pytest.mark.parametrize("name", NAMES)
def test_an_option_named_in_running_text_is_some_commands(name: str) -> None:
    known = {"--version", "--help"}.union(*OPTIONS.values())
    for span in re.findall(r"`(--[^`]+)`", prose(TEXTS[name])):
        for option in re.findall(r"(?:^|\s)(--[a-z-]+)", span):
            assert option in known, f"{option} in {span!r}"


def test_the_page_of_the_command_line_is_what_its_help_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CWF_MILVUS_URI", "CWF_MILVUS_COLLECTION", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "other")  # the page is the same wherever it is written
    page = TEXTS["docs/cli.md"]
    assert "### index" in page
    assert with_commands(page) == page, "run python tests/doc_tables.py"


def test_every_command_is_documented_and_every_option_has_help() -> None:
    documented = {words[0] for text in TEXTS.values() for words in commands_in(text) if words}
    assert set(COMMANDS) <= documented, set(COMMANDS) - documented
    for name, parser in COMMANDS.items():
        for action in parser._actions:
            described = action.help or action.metavar or action.choices
            assert described, f"cwf-milvus {name} {action.dest}"
            if action.option_strings:
                assert action.help, f"cwf-milvus {name} {action.option_strings[0]}"


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(TEXTS[name])):
        if not target.startswith(("http://", "https://", "#", "mailto:")):
            assert (folder / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("name", NAMES)
def test_python_in_the_documentation_is_python(name: str) -> None:
    for kind, block in BLOCK.findall(TEXTS[name]):
        if kind == "python":
            compile(block, name, "exec")


@pytest.mark.parametrize("page", ["embedding.md", "towhee.md"])
def test_the_code_of_a_page_runs_from_top_to_bottom(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if page == "towhee.md":
        pytest.importorskip("towhee", reason="not installed: pip install 'cwf-milvus[towhee]'")
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for name, pixels in (("cat", CHELSEA), ("coffee", COFFEE), ("rocket", ROCKET)):
        PIL.Image.fromarray(pixels).save(f"photos/{name}.png")
    PIL.Image.fromarray(COFFEE).save("query.jpg")
    known: dict[str, object] = {}
    for kind, block in BLOCK.findall((ROOT / "docs" / page).read_text()):
        if kind == "python":
            exec(compile(block, page, "exec"), known)
    shown = capsys.readouterr().out
    assert shown.count("coffee.png") >= 2


def test_the_sizes_of_a_row_are_those_that_the_code_has() -> None:
    rows = re.findall(
        r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\w+) \| ([\d,]+) \| ([\d.]+) GB \| (\d+) GB \|$",
        TEXTS["docs/milvus.md"].replace("**", ""),
        re.MULTILINE,
    )
    assert len(rows) == 8
    for dim, n_classes, n_regions, keypoints, precision, photo, descriptors, everything in rows:
        layout = Layout(int(dim), int(n_classes), int(n_regions), precision, int(keypoints))
        assert int(photo.replace(",", "")) == layout.row_bytes
        assert float(descriptors) == round(4 * layout.dim / 1000, 1)
        assert int(everything) == round(layout.row_bytes / 1000)


# Stages, named once in STAGES


def test_the_table_of_stages_is_what_the_code_has() -> None:
    page = TEXTS["docs/reranking.md"]
    assert "<!-- stages -->" in page
    assert with_table(page) == page, "run python tests/doc_tables.py"


@pytest.mark.parametrize("name", sorted(STAGES))
def test_a_stage_needs_what_is_said_of_it(name: str) -> None:
    (stage,) = chosen_stages(**{"rerank": "none", "expand": "none", STAGES[name].option: name})
    assert set(stage.needed) == set(STAGES[name].needs)


@pytest.mark.parametrize("option", ["rerank", "expand"])
def test_the_command_line_names_every_stage(option: str) -> None:
    (action,) = (a for a in COMMANDS["search"]._actions if a.dest == option)
    assert all(name in (action.help or "") for name in stage_names(option))  # type: ignore[arg-type]


def test_the_operator_that_reranks_names_every_stage() -> None:
    told = {
        "docstring": CamRerank.__doc__ or "",
        "README": TEXTS["cwf_milvus/data/hub/cam_rerank/README.md"],
    }
    for where, text in told.items():
        missing = [name for name in stage_names("rerank") if f'"{name}"' not in text]
        assert not missing, f"{where} of CamRerank: {missing}"


# Code, named as it is


@pytest.mark.parametrize("name", [*NAMES, *sorted(EXAMPLES), "examples/instance_search.ipynb"])
def test_every_module_that_is_named_is_there(name: str) -> None:
    text = TEXTS.get(name) or EXAMPLES.get(name) or (ROOT / name).read_text()
    for path in re.findall(r"\bcwf_milvus/[\w/]+\.py", text):
        assert (ROOT / path).is_file(), path
    for dotted in re.findall(r"\bcwf_milvus(?:\.[a-zA-Z_]\w*)+", text):
        assert is_there(dotted), dotted
    if name == "docs/architecture.md":
        for path in re.findall(r"`([a-z_]+/[a-z_/]+\.py|[a-z_]+\.py)`", text):
            assert (ROOT / path).is_file() or (ROOT / "cwf_milvus" / path).is_file(), path


def is_there(dotted: str) -> bool:
    """Tell whether a dotted name of ours is a module, or stands in one."""
    thing: object = importlib.import_module("cwf_milvus")
    for i, part in enumerate(dotted.split(".")[1:], start=2):
        if not hasattr(thing, part):
            try:
                importlib.import_module(".".join(dotted.split(".")[:i]))
            except ModuleNotFoundError as error:  # that of an extra is none of ours
                return not str(error.name).startswith("cwf_milvus")
        thing = getattr(thing, part)
    return True
