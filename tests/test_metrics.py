import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from cwf_milvus.errors import SettingsError
from cwf_milvus.evaluation import (
    Dataset,
    QueryTruth,
    average_precision,
    evaluate_rankings,
    precision_at,
)
from cwf_milvus.evaluation.metrics import ns_score


def area_point_by_point(ranking, positives, junk):
    """Oxford's algorithm as its authors describe it: a trapezoid at every rank, in fractions."""
    area, old_recall, old_precision = Fraction(0), Fraction(0), Fraction(1)
    found = read = 0
    for entry in ranking:
        if entry in junk:
            continue
        found += entry in positives
        read += 1
        recall, precision = Fraction(found, len(positives)), Fraction(found, read)
        area += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return area


def dataset_of(queries, images="abcdefgh", **settings):
    files = {name: Path(name) for name in images}
    return Dataset("letters", tuple(images), tuple(queries), files, **settings)


def query(positives, junk="", group=None, hard=""):
    return QueryTruth("q", None, frozenset(positives), frozenset(junk), group, frozenset(hard))


@pytest.mark.parametrize(
    ("ranking", "expected"),
    [
        ("abxy", Fraction(1)),
        ("axb", Fraction(19, 24)),  # (1 + 1)/2 · 1/2 + (1/2 + 2/3)/2 · 1/2
        ("xab", Fraction(5, 12)),  # (0 + 1/2)/2 · 1/2 + (1/2 + 2/3)/2 · 1/2
        ("xya", Fraction(1, 12)),  # (0 + 1/3)/2 · 1/2, b is never found
        ("a", Fraction(1, 2)),
        ("", Fraction(0)),
        ("xyz", Fraction(0)),
    ],
)
def test_average_precision_is_the_trapezoidal_area(ranking, expected):
    assert average_precision(ranking, "ab") == pytest.approx(float(expected), abs=1e-15)


def test_average_precision_agrees_with_oxfords_point_by_point_algorithm():
    rng = np.random.default_rng(0)
    for _ in range(50):
        ranking = rng.permutation(40).tolist()
        chosen = rng.permutation(40)
        positives, junk = set(chosen[:7].tolist()), set(chosen[7:15].tolist())
        expected = float(area_point_by_point(ranking, positives, junk))
        assert average_precision(ranking, positives, junk) == pytest.approx(expected, abs=1e-12)


def test_junk_takes_no_place_in_the_ranking():
    assert average_precision("jajxb", "ab", "j") == average_precision("axb", "ab")
    assert precision_at("ja", "a", "j", k=1) == 1


def test_an_image_that_is_positive_and_junk_is_junk():
    assert average_precision("xa", "aj", "j") == average_precision("xa", "a")
    assert math.isnan(average_precision("xa", "j", "j"))


def test_a_duplicate_counts_where_it_first_stands_and_takes_no_place_afterwards():
    assert average_precision("aaxxb", "ab") == average_precision("axb", "ab")
    assert precision_at("xxab", "ab", k=2) == precision_at("xab", "ab", k=2) == 1 / 2


def test_without_positives_there_is_no_score():
    assert math.isnan(average_precision("abc", ""))
    assert math.isnan(precision_at("abc", "", k=5))


@pytest.mark.parametrize(
    ("ranking", "k", "expected"),
    [
        ("xab", 1, Fraction(0)),
        ("xab", 2, Fraction(1, 2)),
        ("xabyz", 10, Fraction(2, 3)),  # all found at rank 3: k is 3
        ("abxyz", 5, Fraction(1)),  # all found at rank 2: k is 2
        ("axyzw", 5, Fraction(1, 5)),  # b is not found: k stays
        ("x", 5, Fraction(0)),
    ],
)
def test_precision_at_k_stops_at_the_last_positive_as_in_roxford(ranking, k, expected):
    assert precision_at(ranking, "ab", k=k) == pytest.approx(float(expected), abs=1e-15)


def test_precision_at_nothing_is_refused():
    with pytest.raises(SettingsError, match="k=0"):
        precision_at("ab", "a", k=0)


def test_the_ns_score_counts_the_four_relevant_among_the_first_four():
    assert ns_score("abxcd", "abcd") == 3
    assert ns_score("abcd", "abcd") == 4
    assert ns_score("xyzwabcd", "abcd") == 0


def test_a_result_has_the_means_the_query_scores_and_the_groups():
    dataset = dataset_of(
        [query("ab", group="one"), query("c", group="two"), query("d", "c", "two")]
    )
    result = evaluate_rankings(dataset, [list("aeb"), list("c"), list("ced")])
    expected = [Fraction(19, 24), Fraction(1), Fraction(1, 4)]
    assert result.average_precisions == pytest.approx([float(ap) for ap in expected])
    assert result.mean_ap == pytest.approx(float(sum(expected) / 3))
    assert result.groups == pytest.approx({"one": 19 / 24, "two": 5 / 8})
    assert result.mean_precision == pytest.approx(
        {1: 2 / 3, 5: float((Fraction(2, 3) + 1 + Fraction(1, 2)) / 3), 10: 13 / 18}
    )
    assert result.ns_score is None
    assert result.setups == {}


def test_a_query_without_positives_is_counted_and_left_out_of_the_means():
    result = evaluate_rankings(dataset_of([query("a"), query("")]), ["a", "a"])
    assert result.mean_ap == 1
    assert result.mean_precision[1] == 1
    assert result.without_positives == 1
    assert math.isnan(result.average_precisions[1])


def test_a_result_with_nan_is_valid_json():
    result = evaluate_rankings(dataset_of([query("", group="none")]), ["a"])
    figures = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert figures["map"] is None
    assert figures["ap"] == [None]
    assert figures["groups"] == {"none": None}


def test_easy_medium_and_hard_judge_the_same_ranking_differently():
    # a is easy, b is hard, j is junk: easy reads "xa", medium "xba", hard "xb".
    dataset = dataset_of([query("ab", "j", hard="b")], "abjx", setups=("easy", "medium", "hard"))
    result = evaluate_rankings(dataset, [list("jxba")])
    assert result.setups["easy"].mean_ap == pytest.approx(1 / 4)
    assert result.setups["medium"].mean_ap == pytest.approx(5 / 12)
    assert result.setups["hard"].mean_ap == pytest.approx(1 / 4)
    assert result.setups["medium"].mean_precision[5] == pytest.approx(2 / 3)
    assert result.mean_ap == result.setups["medium"].mean_ap
    assert set(result.to_dict()["setups"]) == {"easy", "medium", "hard"}


def test_a_query_with_no_easy_positive_is_left_out_of_easy_only():
    dataset = dataset_of([query("b", hard="b"), query("a")], setups=("easy", "medium", "hard"))
    result = evaluate_rankings(dataset, [list("ab"), list("ab")])
    assert [result.setups[name].without_positives for name in dataset.setups] == [1, 0, 1]


def test_an_unknown_setup_is_refused():
    with pytest.raises(SettingsError, match="'tricky'"):
        query("a").at("tricky")


def test_the_mean_ns_score_is_given_where_the_dataset_asks_for_it():
    dataset = dataset_of([query("abcd"), query("efgh")], scores_ns=True)
    result = evaluate_rankings(dataset, [list("abcd"), list("efagh")])
    assert result.ns_score == pytest.approx(7 / 2)


def test_positions_and_names_give_the_same_result():
    dataset = dataset_of([query("ab", "c")])
    by_name = evaluate_rankings(dataset, [list("dcab")])
    assert evaluate_rankings(dataset, np.array([[3, 2, 0, 1]])) == by_name
    assert evaluate_rankings(dataset, [[3, 2, 0, 1]]) == by_name


def test_a_ranking_of_something_else_is_refused():
    dataset = dataset_of([query("ab")])
    with pytest.raises(SettingsError, match="1 queries, and 2 rankings"):
        evaluate_rankings(dataset, ["a", "b"])
    with pytest.raises(SettingsError, match=r"'/photos/a.jpg'"):
        evaluate_rankings(dataset, [["/photos/a.jpg"]])
    for position in (8, -1):
        with pytest.raises(SettingsError, match=f"position {position}"):
            evaluate_rankings(dataset, [[position]])
