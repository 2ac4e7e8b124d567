"""The command line: what each command does, prints, and returns."""

import argparse
import json
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from command_line import ROOT, TINY, programs
from milvus_server import MilvusServer, why_not
from photo_files import CHELSEA, encoded
from skimage import data as real

from cwf_milvus.cli.program import build_parser, main, next_commands
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.encode.encoder import Encoder

PHOTOS = (CHELSEA, real.coffee(), real.astronaut(), real.rocket())
TOKEN = "s3cret-t0ken"
NETWORK = ("--backbone", "timm:test_resnet", "--weights", "random")
SMALL = (*NETWORK, "--image-size", "64", "--class-image-size", "32", "--quiet")
SETTINGS = {"weights": "random", "image_size": 64, "class_image_size": 32}


def fill(folder, n):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    for i in range(n):
        photo = PHOTOS[i % 4]
        top, left = rng.integers(photo.shape[0] - 80), rng.integers(photo.shape[1] - 100)
        (folder / f"{i:03d}.png").write_bytes(encoded(photo[top : top + 80, left : left + 100]))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("cli") / "photos", 5)


@pytest.fixture(scope="module")
def uri(folder):
    """A collection of five photos."""
    place = str(folder.parent / "photos.db")
    assert main(["index", str(folder), "--uri", place, *TINY]) == 0
    return place


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    with programs(tmp_path_factory.mktemp("programs")) as started:
        yield started


@pytest.fixture
def run(capsys):
    """Runs a command here, and returns its exit status and what it wrote."""

    def call(*arguments):
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        return (status, *capsys.readouterr())

    return call


def commands():
    (action,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices, {choice.dest: choice.help for choice in action._choices_actions}


# Help and usage


@pytest.mark.parametrize("name", commands()[0])
def test_every_command_and_every_option_has_help(run, name):
    parsers, purposes = commands()
    assert purposes[name]
    status, out, _ = run(name, "--help")
    assert status == 0
    assert " ".join(parsers[name].description.split()) in " ".join(out.split())
    for action in parsers[name]._actions:
        assert action.help or action.metavar or action.choices, action


@pytest.mark.parametrize("name", commands()[0])
def test_every_help_has_two_examples_that_can_be_typed(run, name):
    _, out, _ = run(name, "--help")
    shown = re.findall(r"^  cwf-milvus (.+)$", out.partition("\nexamples:\n")[2], re.MULTILINE)
    assert len(shown) == 2
    for example in shown:
        words = shlex.split(example.partition(" > ~")[0])
        assert words[0] == name
        assert build_parser().parse_args(words)


@pytest.mark.parametrize("name", commands()[0])
def test_every_option_with_a_value_says_what_holds_without_it(name):
    for action in commands()[0][name]._actions:
        if action.option_strings and action.nargs != 0 and not action.required:
            assert re.search(r"\(.+\)", action.help), f"{name} {action.option_strings}"


def test_verbose_names_each_photo_and_where_an_error_came_from(run, folder, tmp_path, monkeypatch):
    for name in ("cwf_milvus", "cwf_milvus.cli.program", "cwf_milvus.index.report"):
        # Other libraries of this process, Towhee for one, switch off what they find.
        monkeypatch.setattr(logging.getLogger(name), "disabled", False)
    monkeypatch.setattr(logging.root.manager, "disable", 0)
    place = ("--uri", tmp_path / "p.db")
    status, _, err = run("index", folder, *place, *TINY, "--verbose")
    assert status == 0
    assert f"added: {folder / '000.png'}\n" in err
    assert re.search(r"index took \d+\.\d s", err)
    shown = ("--limit", "1", "--html", tmp_path / "hits.html")
    assert "written: " in run("search", folder / "000.png", *place, *shown)[2]
    assert "written: " not in run("search", folder / "000.png", *place, *shown, "--quiet")[2]
    status, _, err = run("info", "--uri", tmp_path / "none.db", "-v")
    assert status == 3
    assert "Traceback" in err
    assert "Traceback" not in run("info", "--uri", tmp_path / "none.db")[2]


def test_what_the_demonstration_says_to_type_next_can_be_typed(tmp_path):
    lines = next_commands(tmp_path / "a folder")
    assert len(lines) == 3
    for line in lines:
        assert build_parser().parse_args(shlex.split(line)[1:])
    assert str(tmp_path / "a folder" / "photos.db") in shlex.split(lines[0])


def test_list_names_the_collections_with_their_counts(run, uri):
    status, out, _ = run("list", "--uri", uri)
    assert status == 0
    assert out.splitlines()[1].split() == ["5", "photos", "timm:test_resnet,", "96", "dimensions"]
    status, out, _ = run("list", "--uri", uri, "--json")
    assert json.loads(out)["photos"] == 5


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_is_a_static_script_that_names_every_command(run, shell):
    status, out, _ = run("completion", shell)
    assert status == 0
    assert all(name in out for name in commands()[0])
    assert shell == "tcsh" or "--max-pixels" in out
    checked = {"bash": "bash", "zsh": "zsh"}.get(shell)
    if checked and shutil.which(checked):
        subprocess.run([checked, "-n"], input=out, text=True, check=True)


def test_bash_completes_commands_and_options(run, tmp_path):
    script = tmp_path / "completion.bash"
    script.write_text(run("completion", "bash")[1])
    asking = (
        f"source {script}; COMP_WORDS=(cwf-milvus search --min); COMP_CWORD=2; "
        "COMP_LINE='cwf-milvus search --min'; _shtab_cwf_milvus; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", asking], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["--min-certainty"]


def test_the_help_names_the_commands_and_the_exit_statuses(run):
    status, out, _ = run("--help")
    assert status == 0
    for name in commands()[0]:
        assert f"\n    {name}" in out
    assert "exit status: 0 all done" in out
    assert "MILVUS_TOKEN" in out


def test_no_command_at_all_is_wrong_usage_and_shows_the_help(run):
    status, out, err = run()
    assert (status, out) == (2, "")
    assert "usage: cwf-milvus" in err
    assert "index" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nonsense",), "invalid choice: 'nonsense'"),
        (("index",), "name the photos to index, or give --upgrade"),
        (("index", "x", "--workers", "0"), "'0': give a whole number of at least 1"),
        (("index", "x", "--batch-size", "-1"), "'-1': give a whole number of at least 1"),
        (("index", "x", "--store-classes", "many"), "'many': give a whole number"),
        (("index", "x", "--classes", "cat,dog"), "'cat,dog': give class ids, as in 285,282"),
        (("index", "x", "--classes", "1", "--classes-from", "x"), "not allowed with"),
        (("index", "x", "--fit", "--no-whitening"), "not allowed with"),
        (("index", "x", "--descriptor", "none"), "invalid choice: 'none'"),
    ],
)
def test_wrong_usage_says_what_is_right(run, arguments, words):
    status, _, err = run(*arguments)
    assert status == 2
    assert words in err


def test_help_does_not_wait_for_the_networks_library():
    code = "import sys, cwf_milvus.cli as cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules, 'pymilvus' in sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "False False"


def test_place_and_collection_can_come_from_the_environment(run, uri, monkeypatch):
    monkeypatch.setenv("CWF_MILVUS_URI", uri)
    status, out, _ = run("info", "--json")
    assert (status, json.loads(out)["photos"]) == (0, 5)
    monkeypatch.setenv("CWF_MILVUS_COLLECTION", "other")
    status, _, err = run("info")
    assert status == 3
    assert "there is no collection 'other'" in err
    assert "there are: photos" in err


# Index


def test_index_says_what_it_did_and_a_second_run_skips(run, folder, uri):
    status, out, err = run("index", folder, "--uri", uri)
    assert status == 0
    assert out.startswith("0 added, 0 updated, 5 skipped, 0 failed in ")
    assert f"collection 'photos' in {uri}; whitening: none" in err
    assert "0 added, 5 skipped, 0 updated, 0 failed" in err  # the progress bar
    status, out, err = run("index", folder, "--uri", uri, "--quiet")
    assert status == 0
    assert "skipped" not in err


def test_how_many_keypoints_are_kept_can_be_said(run, folder, tmp_path):
    place = ("--uri", tmp_path / "p.db")
    tiny = [word for word in TINY if word not in ("--keypoints", "0")]
    assert run("index", folder, *place, *tiny, "--keypoints", "50")[0] == 0
    assert json.loads(run("info", *place, "--json")[1])["n_keypoints"] == 50
    status, _, err = run("index", folder, "--uri", tmp_path / "q.db", *tiny, "--keypoints", "-1")
    assert status == 2
    assert "keypoints=-1: give a whole number from 0 to" in err


@pytest.mark.filterwarnings("default::cwf_milvus.method.whitening.ReducedDimensionWarning")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--no-whitening",), {"whitening": "none", "dim": 96}),
        (("--fit",), {"whitening": "fitted on 40 photos"}),
        (("--fit", "{folder}", "--dim", "90"), {"whitening": "fitted on 40 photos", "dim": 80}),
        (("--fit", "{folder}", "--dim", "16"), {"dim": 16}),
        (("--whitening", "{file}"), {"whitening": "fitted on my own", "dim": 16}),
        (("--whitening", "{file}", "--dim", "8"), {"whitening": "fitted on my own", "dim": 8}),
        (("--no-whitening", "--store-classes", "3"), {"n_classes": 3}),
        (("--no-whitening", "--store-classes", "all"), {"n_classes": 1000}),
        (("--no-whitening", "--classes", "7,3,9"), {"n_classes": 3, "classes": [7, 3, 9]}),
        (
            ("--no-whitening", "--classes-from", "{folder}/*1.png", "--store-classes", "6"),
            {"n_classes": 6},
        ),
        (("--no-whitening", "--descriptor", "classes"), {"descriptor": "classes"}),
        (("--no-whitening", "--descriptor", "regions"), {"descriptor": "regions"}),
        (("--no-whitening", "--class-rows"), {"class_rows": True}),
        (("--no-whitening", "--precision", "float16"), {"precision": "float16"}),
        (
            ("--no-whitening", "--cams-from", "efficientnet_lite0"),
            {"cams_from": "efficientnet_lite0"},
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_command_that_made_a_collection_also_goes_on_with_it(
    run, forty, own_whitening, tmp_path, options, told
):
    given = [option.format(folder=forty, file=own_whitening) for option in options]
    command = ("index", forty, "--uri", tmp_path / "p.db", *SMALL, *given)
    status, out, err = run(*command)
    assert (status, out[:8]) == (0, "40 added"), err
    status, shown, _ = run("info", "--uri", tmp_path / "p.db", "--json")
    about = json.loads(shown)
    assert {name: about.get(name, about["settings"].get(name)) for name in told} == told
    assert f"whitening: {about['whitening']}" in err
    status, out, err = run(*command)
    assert (status, out[:31]) == (0, "0 added, 0 updated, 40 skipped,"), err


@pytest.fixture(scope="module")
def forty(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("forty") / "photos", 40)


@pytest.fixture(scope="module")
def own_whitening(tmp_path_factory, forty):
    encoder = Encoder("timm:test_resnet", **SETTINGS, dim=16)
    encoder.fit(str(forty), origin="fitted on my own")
    return encoder.save(tmp_path_factory.mktemp("saved") / "encoder")


@pytest.mark.parametrize(
    ("options", "here", "asked"),
    [
        (("--image-size", "96"), "image_size=64", "image_size=96"),
        (("--store-classes", "9"), "n_classes=4", "n_classes=9"),
        (("--store-classes", "all"), "n_classes=4", "n_classes=4096"),
        (("--descriptor", "classes"), "descriptor='both'", "descriptor='classes'"),
        (("--dim", "32"), "dim=96", "dim=32"),
        (("--classes", "1,2"), "classes=None", r"classes=[1, 2]"),
        (("--classes-from", "x"), "classes=None", "classes='those from x'"),
        (("--backbone", "resnet50"), "backbone='timm:test_resnet'", "backbone='resnet50'"),
        (("--fit",), "whitening='none'", "whitening='one to be fitted'"),
        (("--whitening", "{file}"), "whitening='none'", "whitening='fitted on my own ("),
        (("--class-rows",), "class_rows=False", "class_rows=True"),
        (("--precision", "float16"), "precision='int4'", "precision='float16'"),
        (("--paper-compat",), "paper_compat=False", "paper_compat=True"),
    ],
)
def test_another_setting_than_the_collections_is_refused_with_both_values(
    run, folder, uri, own_whitening, options, here, asked
):
    given = [option.format(file=own_whitening) for option in options]
    status, out, err = run("index", folder, "--uri", uri, *given)
    assert (status, out) == (3, "")
    assert f"was made with {here}" in err
    assert f"asked for was {asked}" in err
    assert "create another collection with --collection" in err


def test_another_whitening_of_the_same_words_is_refused(run, forty, own_whitening, tmp_path):
    encoder = Encoder("timm:test_resnet", **SETTINGS, dim=16)
    encoder.fit(sorted(map(str, forty.iterdir()))[:30], origin="fitted on my own")
    other = encoder.save(tmp_path / "encoder")
    place = ("index", forty / "000.png", "--uri", tmp_path / "p.db", *SMALL)
    assert run(*place, "--whitening", own_whitening)[0] == 0
    status, _, err = run(*place, "--whitening", other)
    assert status == 3
    assert f"whitening='fitted on my own ({other})'" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--report", "no/folder/report.jsonl"), "cannot write the report 'no/folder"),
        (("--metadata", "no/metadata.csv"), "cannot read the metadata file 'no/metadata.csv'"),
        (("--metadata", "nowhere"), "'nowhere'"),
        (("--whitening", "no/whitening"), "cannot read the whitening 'no/whitening'"),
        (("--dim", "50"), "dim=50 asked for without a whitening"),
        (("--classes", "5000"), "classes names 5000"),
        (("--backbone", "nonsense"), "there is no backbone 'nonsense'"),
        (("--backbone", "resnet50", "--weights", "no.pth"), "no.pth"),
        (("--device", "nonsense"), "device 'nonsense' cannot be had"),
        (("--image-size", "5"), "image_size=5"),
        (("--layer", "nonsense"), "nonsense"),
    ],
)
def test_what_cannot_be_used_is_refused_before_a_collection_is_made(
    run, folder, tmp_path, monkeypatch, options, words
):
    monkeypatch.chdir(tmp_path)
    whitening = () if "--whitening" in options else ("--no-whitening",)
    status, out, err = run("index", folder, "--uri", "p.db", *SMALL, *whitening, *options)
    assert (status, out) == (2, "")
    assert words in err
    assert "Traceback" not in err
    assert not Path("p.db").exists()


def test_photos_that_do_not_exist_are_refused_before_a_collection_is_made(run, folder, tmp_path):
    status, _, err = run("index", folder, "nowhere", "--uri", tmp_path / "p.db", *TINY)
    assert status == 2
    assert "'nowhere' does not exist; name a photo, a folder, a glob or a url" in err
    assert not (tmp_path / "p.db").exists()


def test_a_folder_without_photos_says_what_would_be_taken(run, uri, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("x")
    status, out, err = run("index", tmp_path / "in", "--uri", uri, "--quiet")
    assert (status, out[:8]) == (0, "0 added,")
    assert "no photo found: JPEG, PNG, " in err
    assert "passed over: 1 .txt" in out


def test_metadata_that_names_none_of_the_photos_is_told(run, folder, uri, tmp_path):
    (tmp_path / "m.csv").write_text("file_name,year\nIMG_1.jpg,1999\n")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        command = ("index", folder, "--uri", uri, "--quiet", "--metadata", tmp_path / "m.csv")
        status, _, err = run(*command)
    assert status == 0
    assert "m.csv: rows that name none of these 5 photos: 1 (line 2 'IMG_1.jpg')" in err


def test_fitting_on_too_few_photos_is_refused_in_words(run, folder, tmp_path):
    status, _, err = run("index", folder / "000.png", "--uri", tmp_path / "p.db", *SMALL, "--fit")
    assert status == 2
    assert "too few to fit a whitening" in err
    assert not (tmp_path / "p.db").exists()


def test_a_network_without_a_shipped_whitening_asks_for_one(run, folder, tmp_path):
    status, _, err = run("index", folder, "--uri", tmp_path / "p.db", *SMALL)
    assert status == 2
    assert "no whitening ships for 'timm:test_resnet'" in err
    assert "--fit" in err
    assert "--no-whitening" in err


@pytest.mark.slow
def test_the_first_photo_of_the_default_network_is_found_with_the_shipped_whitening(run, tmp_path):
    (tmp_path / "cat.png").write_bytes(encoded())
    place = ("--uri", tmp_path / "p.db")
    status, out, err = run("index", tmp_path / "cat.png", *place, "--quiet")
    assert (status, out[:7]) == (0, "1 added"), err
    assert "whitening: shipped with cwf-milvus" in err
    status, out, _ = run("search", tmp_path / "cat.png", "--box", "90,5,355,275", *place)
    assert status == 0
    assert out.splitlines()[1].split()[0] == "1"
    assert "Egyptian cat" in out


# Search, info, verify, remove


def test_search_prints_a_table_of_the_best_first(run, folder, uri):
    status, out, err = run("search", folder / "001.png", "--uri", uri, "--limit", "3")
    assert (status, err) == (0, "")
    header, *lines = out.splitlines()
    assert header.split() == ["rank", "score", "certainty", "points", "photo", "shared", "classes"]
    assert len(lines) == 3
    assert lines[0].split()[0] == "1"
    assert lines[0].split()[4] == str(folder / "001.png")


def test_search_takes_several_queries_each_with_a_box_or_none(run, folder, uri):
    queries = (folder / "001.png", folder / "002.png")
    boxes = ("--box", "5,5,60,60", "--box", "-")
    status, out, _ = run("search", *queries, *boxes, "--uri", uri, "--json")
    assert status == 0
    first, second = map(json.loads, out.splitlines())
    assert first["query"] == {"name": str(queries[0]), "box": [5, 5, 60, 60]}
    assert second["query"]["box"] is None
    assert second["hits"][0]["uri"] == str(queries[1])
    status, _, err = run("search", *queries, "--box", "5,5,60,60", "--uri", uri)
    assert status == 2
    assert "1 boxes for 2 queries" in err


@pytest.mark.filterwarnings("default::cwf_milvus.errors.BoxWarning")
def test_a_box_may_begin_outside_the_photo(run, folder, uri):
    query = ("search", folder / "001.png", "--uri", uri, "--json")
    status, out, err = run(*query, "--box", "-5,-5,60,60")
    assert status == 0
    assert len(json.loads(out)["hits"]) == 5
    assert "box -5,-5,60,60" in err


def test_a_working_folder_that_was_removed_is_told(run, uri, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run("list", "--uri", uri) == (
        2,
        "",
        "cwf-milvus: the working folder was removed: change to one that is there\n",
    )


def test_a_field_to_show_that_no_photo_has_is_told(run, folder, uri):
    status, out, err = run("search", folder / "001.png", "--uri", uri, "--show", "shelf")
    assert (status, "shelf" in out) == (0, True)
    assert "--show shelf: no photo has such a field of yours" in err


def test_a_search_for_nothing_is_refused(run, uri):
    status, out, err = run("search", "--uri", uri)
    assert (status, out) == (2, "")
    assert "name a query photo, or a stored one by --like" in err


def test_search_writes_a_page(run, folder, uri, tmp_path):
    page = tmp_path / "hits.html"
    status, out, err = run("search", folder / "001.png", "--uri", uri, "--html", page)
    assert status == 0
    assert f"written: {page}" in err
    assert "001.png" in page.read_text()
    assert "rank" in out
    photo = folder / "002.png"
    before = photo.read_bytes()
    status, _, err = run("search", folder / "001.png", "--uri", uri, "--html", photo)
    assert (status, photo.read_bytes()) == (2, before)
    assert f"{str(photo)!r} is there, and is no page: name another file" in err
    status, _, err = run("search", folder / "001.png", "--uri", uri, "--html", "no/folder/x.html")
    assert status == 2
    assert "no/folder/x.html" in err


def test_metadata_beside_the_photos_can_be_filtered_by(run, tmp_path):
    folder, place = fill(tmp_path / "in", 4), ("--uri", tmp_path / "p.db")
    (folder / "metadata.csv").write_text("file_name,year\n000.png,1999\n001.png,2020\n")
    assert run("index", folder, *place, *TINY)[0] == 0
    query = ("search", folder / "000.png", *place, "--json")
    status, out, _ = run(*query, "--filter", "year > 2000")
    assert status == 0
    (hit,) = json.loads(out)["hits"]
    assert (hit["uri"], hit["metadata"]) == (str(folder / "001.png"), {"year": 2020})
    status, _, err = run(*query, "--filter", "year ===")
    assert status == 2
    assert "Milvus refused the filter 'year ==='" in err
    status, out, _ = run(*query[:-1], "--filter", "year == 1")
    assert (status, out) == (0, f"{folder / '000.png'}: no hits\n")


def test_info_says_how_a_collection_was_made(run, uri):
    status, out, _ = run("info", "--uri", uri)
    assert status == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for line in ("photos 5", "whitening none", "dim 96", "image size 64", f"uri {uri}"):
        assert line in lines


@pytest.mark.parametrize("command", ["search", "info", "verify", "classes", "backbones"])
def test_json_is_a_value_a_line_in_ascii(run, uri, folder, command):
    photos = [folder / "000.png", folder / "001.png"]
    arguments = {
        "search": (*photos, "--uri", uri),
        "classes": (*photos, *NETWORK),
        "backbones": (),
    }.get(command, ("--uri", uri))
    status, out, _ = run(command, *arguments, "--json")
    assert status == 0
    assert out.isascii()
    values = [json.loads(line) for line in out.splitlines()]
    assert len(values) == (2 if command in ("search", "classes") else len(values)) > 0
    assert all(isinstance(value, dict) for value in values)


def test_verify_finds_lost_and_damaged_rows_until_they_are_accepted_or_mended(
    run, folder, tmp_path
):
    place = ("--uri", tmp_path / "p.db")
    assert run("index", folder, *place, *TINY)[0] == 0
    status, out, _ = run("verify", *place)
    assert (status, out) == (0, "5 rows, 0 damaged\nok\n")
    with InstanceCollection.open(tmp_path / "p.db", "photos") as photos:
        (row,) = photos.raw_rows([str(folder / "000.png")]).values()
        row["width"] += 1
        photos.store.write("photos", [row])
        photos.store.delete("photos", "uri", [str(folder / "001.png")])
    status, out, _ = run("verify", *place)
    assert status == 1
    assert "1 rows are lost: 5 were stored" in out
    assert f"damaged: '{folder / '000.png'}': its checksum is another" in out
    status, out, _ = run("verify", *place, "--json")
    assert status == 1
    assert json.loads(out).items() >= {"ok": False, "lost": 1, "rows": 4}.items()
    assert run("remove", folder / "000.png", *place)[0] == 0
    assert run("index", folder, *place)[1].startswith("2 added, 0 updated, 3 skipped")
    assert run("verify", *place)[:2] == (0, "5 rows, 0 damaged\nok\n")
    with InstanceCollection.open(tmp_path / "p.db", "photos") as photos:
        photos.store.delete("photos", "uri", [str(folder / "001.png")])
    status, out, _ = run("verify", *place, "--accept")
    assert status == 1  # what is given up is said once more
    assert f"lost: '{folder / '001.png'}'" in out
    assert run("verify", *place)[:2] == (0, "4 rows, 0 damaged\nok\n")


def test_remove_takes_photos_by_path_or_by_the_name_they_are_stored_under(
    run, folder, tmp_path, monkeypatch
):
    uri = tmp_path / "p.db"
    assert run("index", folder, "--uri", uri, *TINY)[0] == 0
    with InstanceCollection.open(uri, "photos") as photos:
        photos.add({"sku-1": PHOTOS[0]}, progress=False)
    monkeypatch.chdir(folder)
    status, out, err = run("remove", "sku-1", "000.png", folder / "001.png", "--uri", uri)
    assert (status, out, err) == (0, "removed 3 of 3\n", "")
    status, out, err = run("remove", "000.png", "002.png", "--uri", uri)
    assert (status, out) == (1, "removed 1 of 2\n")
    assert err == "not in photos: 000.png\n"
    assert json.loads(run("info", "--uri", uri, "--json")[1])["photos"] == 2
    assert run("verify", "--uri", uri)[0] == 0


def test_remove_all_drops_the_collection_with_its_encoder(run, folder, tmp_path):
    place = ("--uri", tmp_path / "p.db")
    assert run("index", folder, *place, *TINY)[0] == 0
    for arguments in ((), ("x", "--all")):
        status, _, err = run("remove", *arguments, *place)
        assert status == 2
        assert "name the photos to remove, or give --all" in err
    assert run("remove", "--all", "--yes", *place)[:2] == (0, "dropped photos\n")
    status, _, err = run("info", *place)
    assert status == 3
    assert "there is no collection 'photos'" in err
    assert run("index", folder, *place, *TINY, "--dim", "96")[0] == 0  # anew, as one likes


# Looking at photos and networks


def test_classes_are_named_and_a_bad_photo_does_not_hide_the_others(run, tmp_path):
    (tmp_path / "cat.png").write_bytes(encoded())
    (tmp_path / "bad.png").write_bytes(b"no photo")
    status, out, err = run("classes", tmp_path / "bad.png", tmp_path / "cat.png", "-n", "3")
    assert status == 1
    assert out.splitlines()[0] == f"{tmp_path / 'cat.png'}:"
    assert out.splitlines()[1].split(maxsplit=2)[::2] == ["285", "Egyptian cat"]
    assert len(out.splitlines()) == 4
    assert err.startswith("failed: ")
    status, out, _ = run("classes", tmp_path / "cat.png", "-n", "2", "--json")
    assert [c["name"] for c in json.loads(out)["classes"]] == ["Egyptian cat", "tiger cat"]
    assert run("classes", tmp_path / "cat.png", "-n", "0")[0] == 2


def test_explain_draws_a_png(run, folder, tmp_path):
    (tmp_path / "cat.png").write_bytes(encoded())
    out_file = tmp_path / "out.png"
    command = ("explain", tmp_path / "cat.png", *NETWORK, "-n", "2")
    status, out, _ = run(*command, "--box", "90,5,355,275", "-o", out_file)
    assert (status, out) == (0, f"written: {out_file}\n")
    with PIL.Image.open(out_file) as figure:
        assert figure.format == "PNG"
        assert min(figure.size) > 300
        assert len(np.unique(np.asarray(figure.convert("RGB")).reshape(-1, 3), axis=0)) > 1000
    for bad, words in (
        (("--box", "900,900,950,950"), "lies outside the photo"),
        (("-o", tmp_path / "no" / "out.png"), "cannot write"),
        (("-o", tmp_path / "out.xyz"), "cannot write"),
        (("-n", "0"), "0"),
    ):
        status, _, err = run(*command, *bad)
        assert status == 2
        assert words in err
    assert run(*command, "-o", out_file)[0] == 0  # its own picture is drawn anew
    for other in (tmp_path / "cat.png", folder / "001.png"):
        before = other.read_bytes()
        status, _, err = run(*command, "-o", other)
        assert (status, other.read_bytes()) == (2, before)
        assert "was not drawn by explain: name another file" in err


def test_backbones_says_what_was_measured_and_what_was_not(run):
    status, out, _ = run("backbones")
    assert status == 0
    for name in ("efficientnet_lite0", "vgg16", "vgg16_cam", "resnet50", "densenet161"):
        assert f"\n{name}\n" in f"\n{out}"
    assert out.count("measured ") == out.count("weights  ") >= 8
    assert "random weights only" in out


def test_published_weights_are_converted(run, tmp_path):
    pytest.importorskip("h5py")
    from safetensors import safe_open
    from test_convert import random_arrays, write_named

    write_named(tmp_path / "cam.h5", random_arrays(1))
    target = tmp_path / "cam.safetensors"
    status, out, _ = run("convert-weights", tmp_path / "cam.h5", target)
    assert status == 0
    assert str(target) in out
    with safe_open(target, "pt") as converted:
        assert len(converted.keys()) > 20
    (tmp_path / "bad.h5").write_bytes((tmp_path / "cam.h5").read_bytes()[:5000])
    for source, words in (("bad.h5", "damaged"), ("none.h5", "No such file")):
        status, _, err = run("convert-weights", tmp_path / source, tmp_path / "x.safetensors")
        assert status == 2
        assert words in err
        assert not (tmp_path / "x.safetensors").exists()


# Milvus cannot be reached, or refuses


@pytest.fixture
def dead_server():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    "command",
    [("index", "{photo}"), ("search", "{photo}"), ("info",), ("verify",), ("remove", "--all")],
    ids=lambda command: command[0],
)
def test_a_server_that_is_down_is_named_and_neither_token_nor_password_is(
    run, folder, dead_server, monkeypatch, command
):
    monkeypatch.setenv("MILVUS_TOKEN", TOKEN)
    arguments = [part.format(photo=folder / "000.png") for part in command]
    for place in (f"http://{dead_server}", f"http://root:{TOKEN}@{dead_server}"):
        status, out, err = run(*arguments, "--uri", place)
        assert (status, out) == (3, "")
        assert dead_server in err
        assert "see that it is running and that the address is right" in err
        assert TOKEN not in err


def test_the_token_is_printed_by_no_command(run, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MILVUS_TOKEN", TOKEN)
    place = ("--uri", tmp_path / "p.db")
    shown = ""
    for command in (
        ("--help",),
        ("index", folder, *place, *TINY),
        ("info", *place),
        ("search", folder / "000.png", *place, "--json"),
        ("verify", *place),
        ("remove", "--all", "--yes", *place),
    ):
        status, out, err = run(*command)
        assert status == 0
        shown += out + err
    assert "photos" in shown
    assert TOKEN not in shown
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and TOKEN.encode() in f.read_bytes()]


@pytest.mark.parametrize(
    "command",
    [
        *(("search", "{photo}"), ("info",), ("verify",), ("list",), ("remove", "--all", "--yes")),
        *(("relocate", "a", "b"), ("augment",), ("graph",), ("duplicates",), ("neighbours", "a")),
        *(("calibrate", "--undo"), ("repair",), ("index", "--upgrade")),
    ],
    ids=lambda command: command[0],
)
def test_what_does_not_exist_is_not_made_by_asking(run, folder, tmp_path, command):
    arguments = [part.format(photo=folder / "000.png") for part in command]
    status, _, err = run(*arguments, "--uri", tmp_path / "none.db")
    assert status == 3
    assert "there is no Milvus Lite database" in err
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize("place", ["photos.txt", "ftp://host", "http://", "photos.db/inner"])
def test_a_uri_that_is_no_place_says_what_is(run, place):
    status, _, err = run("info", "--uri", place)
    assert status == 3
    assert "give a path that ends in .db (Milvus Lite), or http://host:port" in err


def test_a_database_in_use_by_another_process_says_so(folder, uri, start):
    with InstanceCollection.open(uri, "photos"):
        for command in (("index", folder), ("remove", "--all")):
            status, text = start.run(*command, "--uri", uri)
            assert status == 3, text
            assert f"is in use by another process (pid {os.getpid()})" in text
            assert "Traceback" not in text
    assert start.run("info", "--uri", uri)[0] == 0


def test_a_full_disk_is_named_and_the_same_command_goes_on_when_there_is_room(
    run, start, forty, tmp_path
):
    place = ("--uri", tmp_path / "p.db")
    assert run("index", forty / "000.png", *place, *TINY)[0] == 0
    command = ("index", forty, *place, *TINY, "--batch-size", "4")
    status, text = start.run(*command, file_bytes=150_000)
    assert status == 3, text
    assert "make room on the disk, then run again" in text
    assert "Traceback" not in text
    stored = json.loads(run("info", *place, "--json")[1])["photos"]
    assert 0 < stored < 40
    status, out, _ = run(*command)
    assert (status, out.split(" in ")[0]) == (
        0,
        f"{40 - stored} added, 0 updated, {stored} skipped, 0 failed",
    )
    assert run("verify", *place)[0] == 0


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 805306368"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB\nmore of it"),
    ],
    ids=["python", "cpu", "cuda"],
)
def test_too_little_memory_says_what_to_make_smaller(run, folder, tmp_path, monkeypatch, error):
    def failing(*_):
        raise error

    monkeypatch.setattr(Encoder, "encode_prepared", failing)
    status, out, err = run("index", folder, "--uri", tmp_path / "p.db", *TINY)
    assert (status, out) == (2, "")
    assert "cwf-milvus: out of memory (" in err
    assert "give a smaller --batch-size, or a smaller --image-size" in err
    assert "more of it" not in err


@pytest.mark.server
def test_a_collection_is_made_with_the_index_that_was_asked_for(run, folder, server):
    collection = ("--uri", server.uri, "--collection", f"index_{os.getpid()}")
    command = ("index", folder, *collection, *TINY, "--index")
    assert run(*command, "HNSW,M=8,efConstruction=64")[0] == 0
    assert run(*command, "HNSW,M=8,efConstruction=64")[0] == 0  # goes on
    assert json.loads(run("info", *collection, "--json")[1])["index"] == "HNSW"
    status, _, err = run(*command, "IVF_SQ8,nlist=64")
    assert status == 3
    assert "was made with index={'index_type': 'HNSW'" in err
    assert run("remove", *collection, "--all", "--yes")[0] == 0


def test_lite_refuses_an_index_before_anything_is_made(run, folder, tmp_path):
    place = tmp_path / "new.db"
    status, _, err = run("index", folder, "--uri", place, *TINY, "--index", "IVF_SQ8,nlist=64")
    assert status == 2
    assert "on Milvus Lite only FLAT" in err
    assert not InstanceCollection.exists(place, "photos")


@pytest.mark.server
@pytest.mark.slow
def test_a_server_that_stops_half_way_is_named_and_the_same_command_goes_on(
    start, tmp_path, tmp_path_factory
):
    if reason := why_not():
        pytest.skip(reason)
    folder = fill(tmp_path_factory.mktemp("half") / "photos", 300)
    report = tmp_path / "report.jsonl"
    server = MilvusServer(tmp_path / "milvus")
    environ = {"MILVUS_TOKEN": TOKEN}
    command = ("index", folder, "--uri", server.uri, *TINY, "--batch-size", "4", "--wait", "3")
    try:
        server.start()
        run = start.start(*command, "--report", report, environ=environ)
        while run.text().count("failed") == 0 and (
            not report.exists() or report.read_text().count("added") < 20
        ):
            time.sleep(0.02)
        server.kill()
        started = time.monotonic()
        status, text = run.wait(), run.text()
        assert time.monotonic() - started < 90
        assert status == 3, text
        assert server.uri in text
        assert "run again to go on" in text
        server.start()
        status, text = start.run(*command, environ=environ)
        assert status == 0, text
        assert "0 updated" in text
        status, info = start.run("info", "--uri", server.uri, "--json", environ=environ)
        assert json.loads(info)["photos"] == 300
        assert start.run("verify", "--uri", server.uri, environ=environ)[0] == 0
        assert TOKEN not in text + info + run.text()
    finally:
        server.close()


# Interrupted


def test_interrupted_it_ends_promptly_keeps_what_was_finished_and_goes_on(
    run, start, tmp_path, tmp_path_factory
):
    n_photos = 800  # enough that a busy machine interrupts before the end
    folder = fill(tmp_path_factory.mktemp("many") / "photos", n_photos)
    report, place = tmp_path / "report.jsonl", ("--uri", tmp_path / "p.db")
    command = ("index", folder, *place, *TINY, "--batch-size", "4")
    running = start.start(*command, "--report", report)
    while not report.exists() or report.read_text().count("added") < 8:
        time.sleep(0.005)
    running.send(signal.SIGINT)
    started = time.monotonic()
    status, text = running.wait(), running.text()
    assert time.monotonic() - started < 10
    assert status == 130, text
    assert text.splitlines()[-1] == (
        "interrupted: what was finished is kept; run the same command to go on"
    )
    assert "Traceback" not in text
    added = report.read_text().count('"status": "added"')
    assert 8 <= added < n_photos
    assert json.loads(run("info", *place, "--json")[1])["photos"] == added
    status, out, _ = run(*command)
    assert status == 0
    assert out.startswith(f"{n_photos - added} added, 0 updated, {added} skipped, 0 failed")


def test_a_reader_that_stops_reading_is_no_error():
    code = "import sys; from cwf_milvus.cli.program import main; sys.exit(main(['backbones']))"
    done = subprocess.run(
        ["bash", "-c", '"$@" | true; echo "${PIPESTATUS[0]}"', "-", sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
