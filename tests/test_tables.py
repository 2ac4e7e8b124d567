"""`cwf-milvus evaluate` and the paper's tables, on a small set of real photos."""

import json
from pathlib import Path

import pytest
from PIL import Image as PILImage
from pymilvus import MilvusClient
from small_encoders import CHELSEA, COFFEE, ROCKET, crops

from cwf_milvus.cli.evaluate import parse_settings, parse_sweep
from cwf_milvus.cli.program import main
from cwf_milvus.errors import SettingsError
from cwf_milvus.evaluation.features import FeatureStore
from cwf_milvus.evaluation.paper import tables
from cwf_milvus.evaluation.paper.plots import plot_sweep
from cwf_milvus.evaluation.paper.tables import Line, Table

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
NETWORK = ["--backbone", "timm:test_resnet", "--weights", "random", "--image-size", "128"]
QE = ("", " + QE 3", " + QE 10")
NETWORK += ["--class-image-size", "96", "--dim", "16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    names, queries = [], []
    for thing, photo in {"cat": CHELSEA, "cup": COFFEE, "rocket": ROCKET}.items():
        for i, (top, left) in enumerate([(0, 0), (20, 40), (40, 90)]):
            names.append(f"{thing}_{i}.jpg")
            PILImage.fromarray(photo[top : top + 200, left : left + 220]).save(root / names[-1])
        queries.append({"image": names[-3], "positives": names[-2:], "junk": names[-3:-2]})
    (root / "gnd.json").write_text(json.dumps({"images": names, "queries": queries}))
    (root / "fit").mkdir()
    for i, piece in enumerate(crops(70)):
        PILImage.fromarray(piece).save(root / "fit" / f"{i:02}.png")
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def evaluate(folder, cache, capsys):
    """Run the command, and return its status, its JSON and what it said beside."""

    def run(*options: str, json_wanted: bool = True) -> tuple[int, dict, str]:
        words = ["evaluate", str(folder), *NETWORK, "--cache", str(cache), "--quiet", *options]
        status = main([*words, *(["--json"] if json_wanted else [])])
        out, err = capsys.readouterr()
        return status, json.loads(out) if json_wanted and status == 0 else {}, err

    return run


def values(told: dict) -> dict[str, float]:
    return {line["method"]: line["value"] for line in told["tables"][0]["lines"]}


def test_the_best_that_users_get_is_measured_with_keypoints_and_graph(folder, evaluate):
    fit = ("--whiten-from", str(folder / "fit"))
    best = ("--rerank", "auto", "--graph")
    _, plain, _ = evaluate(*fit)
    status, through_milvus, _ = evaluate(*fit, *best)
    assert status == 0
    (found,) = values(through_milvus).values()
    assert next(iter(values(plain).values())) < 1
    assert found == 1  # the same pixels, cut out elsewhere
    assert "auto on 200 + graph" in next(iter(values(through_milvus)))
    _, exact, _ = evaluate(*fit, *best, "--exact")
    assert list(values(exact).values()) == [found]


def test_keypoints_of_kept_features_need_no_network(folder, evaluate, monkeypatch):
    fit = ("--whiten-from", str(folder / "fit"))
    evaluate(*fit)

    def seen(*_: object) -> None:
        raise AssertionError("the network was run again")

    monkeypatch.setattr(FeatureStore, "_see", seen)
    status, told, _ = evaluate(*fit, "--rerank", "auto", "--set", "keypoints=500")
    assert status == 0
    assert list(values(told).values()) == [1]


def test_a_run_through_milvus_equals_an_exact_one(evaluate, folder):
    fit = ("--whiten-from", str(folder / "fit"))
    status, through_milvus, _ = evaluate(*fit)
    assert status == 0
    assert [one["where"] for one in through_milvus["results"]] == ["Milvus Lite"]
    _, exact, _ = evaluate(*fit, "--exact")
    assert exact["results"][0]["result"]["map"] == pytest.approx(
        through_milvus["results"][0]["result"]["map"], abs=1e-3
    )


def test_missing_photos_are_said_before_anything_is_seen(
    folder, cache, tmp_path, capsys, monkeypatch
):
    truth = json.loads((folder / "gnd.json").read_text())
    truth["images"].append("lost.jpg")
    file = tmp_path / "gnd.json"
    file.write_text(json.dumps(truth))

    def seen(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FeatureStore, "collect", seen)
    words = ["evaluate", str(file), "--root", str(folder), *NETWORK, "--cache", str(cache)]
    assert main(words) == 130
    assert "1 missing, named by the ground truth: 'lost.jpg'" in capsys.readouterr().err


def test_table_1a_has_raw_sums_crow_and_class_maps_beside_the_papers(evaluate, folder, tmp_path):
    file = tmp_path / "1a.md"
    _, told, _ = evaluate(
        *("--exact", "--table", "1a", "--whiten-from", str(folder / "fit")),
        *("--markdown", str(file)),
    )
    assert list(values(told)) == [
        "Raw",
        "Raw + PCA",
        "Raw + CroW",
        "Raw + CroW + PCA",
        "OfA 64",
    ]
    assert all(0 < value <= 1 for value in values(told).values())
    assert ".396 / .526" in file.read_text()
    assert "| .712 / .805 / .672 / .733 |" in file.read_text()


def test_table_1b_times_each_number_of_class_maps(evaluate):
    _, told, _ = evaluate("--table", "1b")
    assert list(values(told)) == [
        "Raw + PCA",
        "1 class maps",
        "8 class maps",
        "32 class maps",
        "64 class maps",
    ]
    assert min(values(told).values()) > 0


def test_table_2a_has_every_baseline_with_and_without_whitening(evaluate, folder):
    fit = ("--exact", "--whiten-from", str(folder / "fit"), "--bow-words", "20")
    _, told, _ = evaluate("--table", "2a", *fit)
    found = values(told)
    for name in ("SPoC", "CroW", "MAC", "R-MAC", "GeM", "BoW", "Razavian"):
        assert {name, f"{name}, not whitened"} <= set(found)
    assert {"uCroW", "Raw, uCroW, not whitened", "OfA 64", "OnA 64"} <= set(found)
    assert all(0 < value <= 1 for value in found.values())


def test_table_2b_expands_and_reranks_the_aggregations_and_ours(evaluate, folder, tmp_path):
    file = tmp_path / "2b.md"
    fit = ("--whiten-from", str(folder / "fit"), "--markdown", str(file))
    _, told, _ = evaluate("--table", "2b", "--exact", *fit)
    found = values(told)
    papers = {f"{way} 64{r}{qe}" for way in ("OfA", "OnA") for r in ("", " + R 100") for qe in QE}
    ours = {"ours + R regions 200 + local", "ours + R cam 100 + AQE 5"}
    assert papers | ours <= set(found)
    assert "| .773 / .838 / .750 / .780 |" in file.read_text()


@pytest.mark.parametrize(
    ("word", "settings"),
    [
        ("region_levels=1,2,3", {"region_levels": [1, 2, 3]}),
        ("region_levels=[2]", {"region_levels": [2]}),
        ("feature_weighting=crow", {"feature_weighting": "crow"}),
        ("class_image_size=null", {"class_image_size": None}),
        ("class_whiten_power=.5", {"class_whiten_power": 0.5}),
        ("class_whiten_power=0.5", {"class_whiten_power": 0.5}),
        ("region_channel_weights=false", {"region_channel_weights": False}),
    ],
)
def test_settings_are_read_from_words(word, settings):
    assert parse_settings([word]) == settings


@pytest.mark.parametrize("word", ["dim", "=3", "dim="])
def test_a_setting_without_name_or_value_is_refused(word):
    with pytest.raises(SettingsError, match=f"--set '{word}': give NAME=VALUE"):
        parse_settings([word])


def test_any_setting_of_the_encoder_can_be_measured(evaluate, folder):
    fit = ("--exact", "--whiten-from", str(folder / "fit"))
    _, told, _ = evaluate(*fit, "--set", "region_levels=1,2", "--set", "region_whiten_power=0.25")
    assert "region_levels=1,2 + region_whiten_power=0.25" in next(iter(values(told)))
    _, usual, _ = evaluate(*fit)
    assert told["results"][0]["bytes_per_photo"] < usual["results"][0]["bytes_per_photo"]
    for word, words in (
        ("levels=3", "unknown setting levels"),
        ("region_levels=none", "region_levels='none': give"),
    ):
        status, _, said = evaluate(*fit, "--set", word, json_wanted=False)
        assert status == 2
        assert words in said


@pytest.mark.server
def test_a_run_through_a_server_equals_an_exact_one(evaluate, folder, server):
    options = ("--whiten-from", str(folder / "fit"), "--rerank", "regions", "--expand", "local:1")
    _, through_server, _ = evaluate(*options, "--uri", server.uri)
    assert [one["where"] for one in through_server["results"]] == ["Milvus"]
    _, exact, _ = evaluate(*options, "--exact")
    assert exact["results"][0]["result"]["map"] == pytest.approx(
        through_server["results"][0]["result"]["map"], abs=1e-3
    )
    client = MilvusClient(server.uri)
    assert not [name for name in client.list_collections() if name.startswith("evaluate")]


def test_a_sweep_gives_a_line_a_setting_and_a_picture(evaluate, folder, tmp_path):
    picture = tmp_path / "sweep.png"
    status, told, _ = evaluate(
        *("--exact", "--whiten-from", str(folder / "fit"), "--plot", str(picture)),
        *("--sweep", "classes=1,16", "pca=2,8"),
    )
    assert status == 0
    assert [line["setting"] for line in told["tables"][0]["lines"]] == [
        {"classes": classes, "pca": pca} for pca in (2, 8) for classes in (1, 16)
    ]
    with PILImage.open(picture) as image:
        assert image.format == "PNG"
        assert len(image.convert("L").getcolors()) > 50


def test_predefined_classes_are_counted_from_the_queries(evaluate, folder):
    _, told, _ = evaluate(
        *("--exact", "--whiten-from", str(folder / "fit"), "--predefined-classes", "12"),
        *("--sweep", "pca=2,8"),
    )
    lines = told["tables"][0]["lines"]
    assert [line["setting"]["classes"] for line in lines] == [1, 2, 4, 8, 12] * 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--table", "2a"], "--whiten-from"),
        (["--sweep", "clases=1"], "classes=1,2,... and pca=1,2,..."),
        (["--expand", "nothing"], "expand='nothing'"),
        (["--class-weight", "0.2"], "give that too"),
        (["--plot", "x.png"], "is no sweep"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_to_do(evaluate, folder, options, said):
    fit = [] if options[0] == "--table" else ["--whiten-from", str(folder / "fit")]
    status, _, error = evaluate("--exact", *fit, *options)
    assert status == 2
    assert said in error


def test_a_table_takes_no_photos_place(evaluate, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0\0")
    status, _, error = evaluate("--exact", "--markdown", str(tmp_path / "a.jpg"))
    assert status == 2
    assert "is no text: name another file" in error
    assert (tmp_path / "a.jpg").read_bytes() == b"\xff\xd8\xff\xe0\0"


def test_a_sweep_takes_the_papers_values_where_none_are_given():
    assert parse_sweep([]) == {"classes": [1, 4, 16, 64], "pca": [1, 8]}
    assert parse_sweep(["pca=3"]) == {"classes": [1, 4, 16, 64], "pca": [3]}


def test_a_table_leaves_out_columns_that_say_nothing():
    table = Table("T", "mAP", [Line("a", 0.5), Line("bb", 0.25)])
    assert str(table) == "T\nmethod  mAP\na       0.500\nbb      0.250"
    assert table.to_markdown().splitlines()[2:4] == ["| method | mAP |", "| --- | --- |"]


def test_only_a_sweep_is_drawn(tmp_path):
    with pytest.raises(SettingsError, match="is no sweep"):
        plot_sweep(Table("T", "mAP", [Line("a", 0.5)]), tmp_path / "t.png")
    assert set(tables.TABLES) == {"1a", "1b", "2a", "2b"}
