"""Batches: photos of one grid, in order."""

from __future__ import annotations

import random
from itertools import chain

import pytest

from cwf_milvus.encode.batching import batches


def parity(number: int) -> int:
    return number % 2


def test_a_batch_holds_items_of_one_key_in_order_and_full_ones_come_first():
    found = list(batches([1, 2, 3, 5, 4, 7, 9], 2, parity))
    assert found == [[1, 3], [2, 4], [5, 7], [9]]


@pytest.mark.parametrize("size", [1, 2, 3, 8, 100])
def test_every_item_is_in_one_batch_of_at_most_the_size(size):
    items = random.Random(0).sample(range(1000), 101)
    found = list(batches(items, size, lambda number: number % 5))
    assert sorted(chain(*found)) == sorted(items)
    assert all(1 <= len(batch) <= size for batch in found)
    assert all(len({number % 5 for number in batch}) == 1 for batch in found)
    for key in range(5):
        own = [number for number in chain(*found) if number % 5 == key]
        assert own == [number for number in items if number % 5 == key]


def test_no_items_give_no_batches():
    assert list(batches([], 8, parity)) == []


def test_items_are_taken_only_as_batches_are_asked_for():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    found = batches(items(), 3, parity)
    assert next(found) == [0, 2, 4]
    assert taken == [0, 1, 2, 3, 4]


def test_a_run_that_skips_finished_batches_forms_the_others_again():
    items = random.Random(1).sample(range(1000), 60)
    undisturbed = list(batches(items, 4, lambda number: number % 3))
    for n_finished in range(len(undisturbed)):
        finished = set(chain(*undisturbed[:n_finished]))
        rest = [number for number in items if number not in finished]
        assert list(batches(rest, 4, lambda number: number % 3)) == undisturbed[n_finished:]
