from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from photo_collection import collection, encoder, encodings, is_cat, photo, photos
from PIL import Image
from skimage import data

from cwf_milvus.answers.answer import Hits
from cwf_milvus.answers.hits import Query
from cwf_milvus.cli import main
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import CollectionError, SettingsError
from cwf_milvus.method.certainty import (
    CertaintyModel,
    Curve,
    certainties,
    fit_certainty,
    is_found,
    threshold_at,
)
from cwf_milvus.rerank import Regions
from cwf_milvus.search.search import search_queries
from cwf_milvus.store.calibration import keep_model, model_of, shipped_model

MODEL = CertaintyModel("tests", Curve(10.0, 3.5, 0.8), Curve(9.0, 3.5, 0.7))


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Iterator[InstanceCollection]:
    with collection(tmp_path_factory.mktemp("certainty") / "photos.db") as made:
        yield made


@pytest.fixture(scope="module")
def absent(stored) -> Hits:
    return stored.search(data.coins(), limit=5, rerank="regions")


def made_up(n: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, inliers and what is right, of which half have many inliers and high scores."""
    rng = np.random.default_rng(seed)
    right = rng.random(n) < 0.3
    scores = np.exp(rng.normal(np.where(right, -2, -4), 0.7))
    inliers = np.where(right & (rng.random(n) < 0.7), rng.integers(6, 90, n), 0)
    return scores, inliers.astype(float), right


# Arithmetic


def test_certainty_is_between_0_and_1_and_grows_with_score_and_inliers():
    scores = np.geomspace(1e-9, 1, 50)
    for inliers in (None, np.zeros(50), np.full(50, 12.0)):
        told = certainties(scores, inliers, MODEL)
        assert (told >= 0).all()
        assert (told <= 1).all()
        assert (np.diff(told) >= 0).all()
    told = certainties(np.full(500, 0.05), np.arange(500.0), MODEL)
    assert (np.diff(told) > 0).all()


def test_a_hit_without_a_score_has_no_certainty_and_finds_nothing():
    assert np.isnan(certainties(np.array([np.nan]), np.array([40.0]), MODEL)).all()
    assert not is_found(np.array([np.nan]), None, MODEL)
    assert not is_found(np.zeros(0), np.zeros(0), MODEL)


def test_hits_for_which_no_keypoints_were_looked_for_are_told_by_the_score_alone():
    scores = np.array([0.05, 0.05])
    told = certainties(scores, np.array([np.nan, 0]), MODEL)
    assert told[0] == certainties(scores, None, MODEL)[0]
    assert told[1] != told[0]


def test_a_fit_tells_the_chance_that_there_is():
    scores, inliers, right = made_up()
    model = fit_certainty(scores, inliers, right, "made up")
    scores, inliers, right = made_up(seed=1)
    for told in (certainties(scores, inliers, model), certainties(scores, None, model)):
        assert abs(told.mean() - right.mean()) < 0.03
        sure = told > 0.8
        assert abs(told[sure].mean() - right[sure].mean()) < 0.1
    both, alone = (
        threshold_at(certainties(scores, given, model), right)[1] for given in (inliers, None)
    )
    assert both > alone + 0.1


def test_a_fit_without_keypoints_has_one_curve():
    scores, inliers, right = made_up()
    alone = fit_certainty(scores, None, right, "made up")
    assert alone.verified is None
    assert alone.score_alone == fit_certainty(scores, inliers, right, "").score_alone
    few = np.where(np.arange(len(right)) < 20, inliers, np.nan)
    assert fit_certainty(scores, few, right, "").verified is None


def test_the_threshold_is_the_lowest_with_the_precision():
    certainty = np.array([0.9, 0.8, 0.8, 0.4, 0.3, 0.2])
    right = np.array([True, True, False, True, True, False])
    assert threshold_at(certainty, right, 1.0) == (0.9, 0.25)
    assert threshold_at(certainty, right, 0.8) == (0.3, 1.0)
    assert threshold_at(certainty, ~right, 0.9) == (1.0, 0.0)


def test_too_few_hits_and_scores_the_wrong_way_round_are_refused():
    scores, inliers, right = made_up()
    with pytest.raises(SettingsError, match="9 right and"):
        fit_certainty(scores, inliers, right & (np.cumsum(right) < 10), "few")
    with pytest.raises(SettingsError, match="no higher than the wrong"):
        fit_certainty(scores, inliers, ~right, "upside down")


# The model as JSON


def test_a_model_comes_back_from_json():
    assert CertaintyModel.from_json(MODEL.to_json()) == MODEL
    alone = CertaintyModel("tests", MODEL.score_alone)
    assert CertaintyModel.from_json(alone.to_json()) == alone


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: "",
        lambda m: "[" * 100_000,
        lambda m: "[]",
        lambda m: json.dumps({**m, "origin": 3}),
        lambda m: json.dumps({**m, "more\n\x1b[2J": 3}),
        lambda m: json.dumps({**m, "verified": [1, 2]}),
        lambda m: json.dumps({**m, "score_alone": None}),
        lambda m: json.dumps({**m, "verified": {**m["verified"], "weight": -1}}),
        lambda m: json.dumps({**m, "verified": {**m["verified"], "weight": float("nan")}}),
        lambda m: json.dumps({**m, "verified": {**m["verified"], "bias": 10**400}}),
        lambda m: json.dumps({**m, "verified": {**m["verified"], "bias": "9"}}),
        lambda m: json.dumps({**m, "verified": {**m["verified"], "threshold": 1.5}}),
        lambda m: json.dumps({**m, "verified": {"bias": 1.0, "weight": 2.0}}),
    ],
)
def test_a_damaged_model_is_refused_in_one_line(damage):
    with pytest.raises(SettingsError, match="calibrate") as refusal:
        CertaintyModel.from_json(damage(json.loads(MODEL.to_json())))
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 400


def test_a_model_ships_for_the_default_encoder_alone(stored):
    assert shipped_model(encoder().fingerprint) == model_of(stored.sidecar)
    assert shipped_model("0" * 64) is None


# Searching


def test_a_thing_that_is_there_is_found(stored):
    hits = stored.search(photo("chelsea-turned.jpg"), limit=8, rerank="regions")
    assert hits.found
    certain = [hit for hit in hits if hit.certainty > 0.9]
    assert len(certain) > 1
    assert all(is_cat(hit.uri) for hit in certain)
    assert '"found": true' in hits.to_json()


def test_a_thing_that_is_not_there_is_probably_not_here(absent):
    assert absent.found is False
    assert len(absent) == 5
    assert str(absent).startswith("probably not here; the nearest:\nrank   score  certainty  photo")
    assert absent.explain().startswith("probably not here; the nearest:\n")
    assert absent.to_dict()["found"] is False
    assert absent[:2].found is False


def test_by_default_keypoints_count_and_an_absent_thing_is_told(stored):
    there, not_there = (
        stored.search(one, limit=8) for one in (photo("coffee-crop.jpg"), data.coins())
    )
    assert (there.found, not_there.found) == (True, False)
    by_inliers = [hit for hit in there if hit.inliers and hit.certainty < 1]
    assert by_inliers
    scores = [next(s.score for s in hit.stages if s.stage == "regions") for hit in by_inliers]
    inliers = np.array([hit.inliers for hit in by_inliers])
    told = certainties(np.array(scores), inliers, model_of(stored.sidecar))
    np.testing.assert_allclose([hit.certainty for hit in by_inliers], told)


def test_the_page_says_so_above_the_nearest(absent, stored, tmp_path):
    page = absent.save(tmp_path / "hits.html").read_text("utf-8")
    assert page.index("Probably not here.</strong> These are the nearest.") < page.index("<ol>")
    assert "Probably not here" in absent._repr_html_()
    there = stored.search(photo("chelsea.png"), limit=2, rerank="regions")
    page = there.save(tmp_path / "there.html").read_text("utf-8")
    assert "Probably not here" not in page
    assert "certainty 100%" in page


def test_the_querys_own_photo_is_certain(stored):
    for stages in ([], [Regions()]):
        query = Query(encodings()[0], "own")
        hits = search_queries(stored, [query], limit=3, filter=None, stages=stages)[0]
        assert {hit.uri: hit.certainty for hit in hits}[query.encoding.uri] == 1
        assert hits.found


@pytest.mark.parametrize("stages", [[], [Regions(descriptor_weight=0.5)]])
def test_other_scores_than_the_fitted_ones_tell_nothing(stored, stages):
    hits = stored.search(data.coins(), limit=3, stages=stages)
    assert hits.found is None
    assert all(hit.certainty is None for hit in hits)
    assert "certainty" not in str(hits)


def test_photos_that_are_looked_for_more_of_tell_nothing(stored):
    hits = stored.search(like=[photo("chelsea.png"), photo("coffee.png")], rerank="regions")
    assert hits.found is None


def test_hits_below_the_least_certainty_are_left_out(stored, absent):
    everything = stored.search(photo("chelsea.png"), limit=50, rerank="regions")
    some = stored.search(photo("chelsea.png"), limit=50, rerank="regions", min_certainty=0.5)
    wanted = [hit.uri for hit in everything if hit.certainty >= 0.5]
    assert [hit.uri for hit in some] == wanted
    assert 1 < len(wanted) < len(everything)
    none = stored.search(data.coins(), rerank="regions", min_certainty=0.9)
    assert (len(none), none.found) == (0, False)
    assert "probably not here; no hits" in str(none)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_certainty": 1.5, "rerank": "regions"}, "min_certainty=1.5"),
        ({"min_certainty": 0.5, "rerank": "classes"}, "re-rank by regions"),
    ],
)
def test_a_least_certainty_that_cannot_be_is_refused(stored, options, said):
    with pytest.raises(SettingsError, match=said):
        stored.search(data.coins(), **options)


# A calibration of one's own


@pytest.fixture
def truth(tmp_path) -> Path:
    """Cats and cups, each asked for by every view of it; the file lies with the photos."""
    names = [path.name for path in photos()]
    things = {thing: [n for n in names if thing in n] for thing in ("chelsea", "coffee")}
    queries = [
        {"image": name, "positives": sorted(set(views) - {name}), "junk": [name]}
        for views in things.values()
        for name in views
    ]
    file = tmp_path / "truth.json"
    file.write_text(json.dumps({"images": names, "queries": queries}))
    return file


@pytest.fixture
def place(tmp_path) -> str:
    with collection(tmp_path / "photos.db"):
        return str(tmp_path / "photos.db")


def test_calibrate_fits_certainty_on_the_users_own_photos(place, truth, capsys):
    root = str(photos()[0].parent)
    at = ["--uri", place, "--collection", "photos"]
    shipped = InstanceCollection.describe(place, "photos")["certainty"]
    assert main(["calibrate", str(truth), "--root", root, "--quiet", "--json", *at]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["right"] >= 10
    assert 0.5 <= told["threshold"] <= 1
    own = InstanceCollection.describe(place, "photos")["certainty"]
    assert own == told["model"] != shipped
    with InstanceCollection.open(place, "photos", encoder=encoder()) as opened:
        hits = opened.search(photo("chelsea-turned.jpg"), limit=50, rerank="regions")
    assert hits.found
    cats = [hit.certainty for hit in hits if is_cat(hit.uri)]
    others = [hit.certainty for hit in hits if not is_cat(hit.uri)]
    assert np.mean(cats) > 3 * np.mean(others)
    assert main(["calibrate", "--undo", *at]) == 0
    assert InstanceCollection.describe(place, "photos")["certainty"] == shipped


def test_calibrate_refuses_photos_that_are_not_stored(place, truth, tmp_path, capsys):
    for path in photos():
        (tmp_path / path.name).symlink_to(path)
    assert main(["calibrate", str(truth), "--quiet", "--uri", place]) == 2
    assert "--root" in capsys.readouterr().err


def test_calibrate_wants_a_file_or_undo(capsys):
    assert main(["calibrate"]) == 2
    assert main(["calibrate", "truth.json", "--undo"]) == 2
    assert "--undo" in capsys.readouterr().err


def test_a_damaged_calibration_is_refused_and_can_be_dropped(place):
    with InstanceCollection.open(place, "photos", encoder=encoder()) as opened:
        opened.sidecar.write_note("certainty", {"origin": "cut"})
        with pytest.raises(CollectionError, match="calibrate --undo"):
            opened.search(data.coins(), rerank="regions")
        keep_model(opened.sidecar, None)
        assert opened.search(data.coins(), rerank="regions").found is False


def test_the_command_line_filters_and_says_so(place, tmp_path, capsys):
    Image.fromarray(data.coins()).save(tmp_path / "coins.png")
    search = ["search", str(tmp_path / "coins.png"), "--uri", place, "--rerank", "regions"]
    assert main([*search, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["found"] is False
    assert max(hit["certainty"] for hit in answer["hits"]) < 0.78
    assert main([*search, "--min-certainty", "0.9"]) == 0
    assert "probably not here; no hits" in capsys.readouterr().out
