"""Defaults from `cwf-milvus.toml`: what they reach, and what a stranger's file cannot do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cwf_milvus.cli import configuration
from cwf_milvus.cli.configuration import Configuration
from cwf_milvus.cli.program import build_parser, commands_of, main
from cwf_milvus.errors import SettingsError

Parsed = Callable[..., dict[str, object]]


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own file, which is not there yet; the working folder is another."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("CWF_MILVUS_URI", raising=False)
    monkeypatch.delenv("CWF_MILVUS_COLLECTION", raising=False)
    (tmp_path / "config" / "cwf-milvus").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "config" / "cwf-milvus" / "cwf-milvus.toml"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The file in the working folder."""
    return tmp_path / "work" / "cwf-milvus.toml"


def parsed(*words: str, beside: Sequence[Path] = (Path(),)) -> dict[str, object]:
    parser = build_parser()
    Configuration.read(beside).apply(commands_of(parser), words)
    return vars(parser.parse_args(words))


def test_a_file_beside_the_photos_gives_defaults_which_options_go_over(here: Path) -> None:
    here.write_text(
        'uri = "inner/x.db"\ncollection = "holiday"\nquiet = true\n'
        '[search]\nlimit = 7\nrerank = ["regions", "spatial"]\nshow = ["a", "b"]\n'
        "min_certainty = 1\n"
    )
    found = parsed("search", "q.jpg")
    assert found["uri"] == str(here.parent / "inner" / "x.db")
    assert (found["collection"], found["quiet"], found["limit"]) == ("holiday", True, 7)
    assert (found["rerank"], found["show"]) == (["regions", "spatial"], ("a", "b"))
    assert found["min_certainty"] == 1.0
    given = ("--limit", "3", "--rerank", "none", "--uri", "y.db", "--show", "c")
    found = parsed("search", "q.jpg", *given)
    assert (found["limit"], found["rerank"], found["uri"]) == (3, ["none"], "y.db")
    assert parsed("serve")["collection"] == ["holiday"]
    assert parsed("evaluate", "gnd.json")["uri"] is None
    assert parsed("restore", "x.cwf")["collection"] is None  # that of the backup


def test_the_environment_goes_over_files(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here.write_text('uri = "x.db"\ncollection = "holiday"\n')
    monkeypatch.setenv("CWF_MILVUS_URI", "env.db")
    assert parsed("info")["uri"] == "env.db"
    assert parsed("info")["collection"] == "holiday"


def test_the_file_beside_the_photos_goes_over_the_users_own(own: Path, here: Path) -> None:
    own.write_text(
        'uri = "http://host:19530"\ncollection = "mine"\n'
        '[search]\nlimit = 5\ndevice = "cpu"\n[index]\nworkers = 2\n'
    )
    here.write_text('collection = "theirs"\n[search]\nlimit = 6\n')
    found = parsed("search", "q.jpg")
    assert (found["uri"], found["collection"]) == ("http://host:19530", "theirs")
    assert (found["limit"], found["device"]) == (6, "cpu")
    assert parsed("index", "p")["workers"] == 2


def test_index_finds_the_file_in_the_folder_that_it_is_given_and_info_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from command_line import TINY
    from photo_files import encoded

    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(encoded())
    file = photos / "cwf-milvus.toml"
    file.write_text('uri = "p.db"\ncollection = "trip"\n')
    assert main(["index", str(photos), *TINY[:-1]]) == 0
    assert f"defaults from {file}" in capsys.readouterr().err
    assert (photos / "p.db").exists()
    os.chdir(photos)
    assert main(["info", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    said = {"uri": str(photos / "p.db"), "collection": "trip"}
    assert info["configuration"] == {str(file): said}
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert str(file) in shown
    assert "trip" in shown


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('token = "s3cret"', "set MILVUS_TOKEN"),
        ('uri = "http://s3cret:s3cret@evil:19530"', "which would be sent your token"),
        ('password = "s3cret"', "'password' cannot be set here"),
        ("[remove]\nall = true\nyes = true", "'remove' cannot be set here"),
        ("[index]\nprune_anyway = true", "'[index] prune_anyway' cannot be set here"),
        ("[index]\nmax-pixels = 1000000000", "'[index] max-pixels' cannot be set here"),
        ('[search]\nhtml = "/home/me/.bashrc"', "'[search] html' cannot be set here"),
        ('[search]\nweights = "evil.pt"', "'[search] weights' cannot be set here"),
        ('[search]\ntoken = "s3cret"', "'[search] token' cannot be set here"),
        ("[serve]\nwritable = true", "'serve' cannot be set here"),
        ("[search]\nlimit = [1]", "limit: give a text or a number"),
        ("[search]\nexplain = 1", "explain: give true or false"),
        ("search = 3", "'search' cannot be set here"),
        ("uri = 3", "uri: give a text"),
        ("limit = 3", "'limit' cannot be set here"),
        ("uri = ", "as TOML"),
        ("a = " + "[" * 50_000, "as TOML"),
        ("a." * 20_000 + "b = 1", "a line of more than 4,096 characters"),
        ("#" * 70_000, "is no file of at most 65,536 bytes"),
    ],
)
def test_what_a_strangers_file_may_not_say_is_refused_by_name(
    here: Path, text: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    here.write_text(text)
    assert main(["search", "q.jpg"]) == 2
    shown = capsys.readouterr().err
    assert named in shown
    assert str(here.name) in shown
    assert "s3cret" not in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to nothing", "bytes"])
def test_what_is_no_file_is_refused_and_never_waited_for(here: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(here)
    elif kind == "folder":
        here.mkdir()
    elif kind == "bytes":
        here.write_bytes(b"\xff\xfe")
    else:
        here.symlink_to("nowhere")
    with pytest.raises(SettingsError, match=r"cwf-milvus\.toml"):
        Configuration.read([Path()])


def test_a_password_is_not_shown(own: Path) -> None:
    own.write_text('uri = "https://root:s3cret@host:19530"\n')
    shown = Configuration.read([]).shown()
    assert shown == {str(own): {"uri": "https://***@host:19530"}}


def test_every_option_that_a_file_may_set_is_one_that_the_command_has() -> None:
    commands = commands_of(build_parser())
    for allowed in (configuration._ANYWHERE, configuration._OWN):
        for name, keys in allowed.items():
            for key in keys:
                assert f"--{key}" in commands[name]._option_string_actions
