"""One rule for boxes, the same in Python, on the command line and in the operators."""

from __future__ import annotations

import warnings

import pytest
from photo_files import saved
from small_encoders import tiny

from cwf_milvus.cli import main
from cwf_milvus.collection import InstanceCollection
from cwf_milvus.errors import BoxError, BoxWarning
from cwf_milvus.explain import explain_figure
from cwf_milvus.operators import InstanceSearch

SHARES = (0.1, 0.1, 0.9, 0.9)
OVER = (-100, 50, 500, 250)
SMALL = (100, 100, 103, 104)


@pytest.fixture(scope="module")
def encoder():
    return tiny(whitening=None)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    return str(saved(tmp_path_factory.mktemp("photos") / "cat.png"))


@pytest.fixture(scope="module")
def uri(photo, encoder, tmp_path_factory):
    place = str(tmp_path_factory.mktemp("db") / "p.db")
    with InstanceCollection.create(place, "photos", encoder) as photos:
        photos.add(photo, progress=False)
    return place


@pytest.fixture(params=["encoder", "search", "explain", "command line", "embed", "operator"])
def ask(request, photo, uri, encoder, capsys):
    """What asks with a box: returns nothing, raises and warns."""

    def by_command(box: tuple[float, ...]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            text = ",".join(map(str, box))
            status = main(["search", photo, f"--box={text}", "--uri", uri])
        said = capsys.readouterr().err
        if status == 2:
            raise BoxError(said)
        for line in said.splitlines():
            if line.startswith("warning: box"):
                warnings.warn(line, BoxWarning, stacklevel=1)

    def by_search(box: tuple[float, ...]) -> None:
        with InstanceCollection.open(uri, "photos", encoder=encoder) as photos:
            photos.search(photo, box=box)

    def by_operator(box: tuple[float, ...]) -> None:
        InstanceSearch(uri, "photos")(photo, box)

    return {
        "encoder": lambda box: encoder.encode_query(photo, box),
        "search": by_search,
        "explain": lambda box: explain_figure(encoder, photo, box),
        "command line": by_command,
        "embed": lambda box: encoder.encode_queries([(photo, box)]),
        "operator": by_operator,
    }[request.param]


def test_shares_of_the_photo_are_refused(ask):
    with pytest.raises(BoxError, match="are these shares of the photo\\? give pixels, x times 451"):
        ask(SHARES)


def test_an_inverted_box_is_refused(ask):
    with pytest.raises(BoxError, match="has no area; give corners with x1 < x2"):
        ask((300, 200, 100, 50))


def test_a_box_partly_outside_is_cut_with_a_word(ask):
    with pytest.warns(
        BoxWarning, match="beyond the photo of 451 x 300 pixels: cut to 0,50,451,250"
    ):
        ask(OVER)


def test_a_box_of_less_than_a_cell_is_searched_with_a_word(ask):
    with pytest.warns(BoxWarning, match="is less than a cell of the features"):
        ask(SMALL)
