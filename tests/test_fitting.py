"""Fitting an encoder's whitenings on photos."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from photo_files import saved
from small_encoders import CHELSEA, COFFEE, crops, network_built_once, tiny

from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.fitting import fit_whitenings
from cwf_milvus.errors import ImageError, WhiteningError
from cwf_milvus.method.whitening import ReducedDimensionWarning, Whitening
from cwf_milvus.photos.listing import photo_items

PHOTOS = crops(20)


@pytest.fixture(scope="module", autouse=True)
def one_network() -> Iterator[None]:
    with network_built_once():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen good photos, two bad ones and a text."""
    place = tmp_path_factory.mktemp("photos")
    for number, photo in enumerate(PHOTOS[:16]):
        PIL.Image.fromarray(photo).save(place / f"{number:02}.png")
    (place / "03_empty.jpg").touch()
    (place / "07_text.png").write_text("not a photo")
    (place / "notes.txt").write_text("not named as one")
    return place


@pytest.fixture(scope="module")
def fitted(folder: Path) -> tuple[Encoder, list[warnings.WarningMessage], list[tuple[int, int]]]:
    """An encoder fitted on the folder, what it warned of, and its progress."""
    progress: list[tuple[int, int]] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encoder = tiny(dim=32).fit(folder, progress=lambda *counts: progress.append(counts))
    return encoder, caught, progress


# --- what is fitted ------------------------------------------------------------------------------


def test_each_whitening_is_the_exact_one_of_all_its_vectors(fitted):
    encoder = fitted[0]
    of_classes, of_regions = [], []
    for photo in PHOTOS[:16]:
        local = encoder.local_vectors([encoder.prepare(encoder.read(photo))])
        of_classes.append(local.class_vectors[0, :8])
        of_regions += local.region_vectors
    for kind, vectors in (("classes", of_classes), ("regions", of_regions)):
        rows = torch.cat(vectors)
        found = getattr(encoder.whitenings, kind)
        exact = Whitening(32, power=found.power).fit(rows)
        assert found.n_samples_ == len(rows)
        alike = (encoder.whiten(rows, kind) * exact.transform(rows)).sum(1)
        assert alike.min() > 0.999  # components are kept in float16


def test_an_image_gives_n_fit_classes_class_vectors_and_all_its_region_vectors():
    encoder = tiny(dim=8, n_fit_classes=3, region_levels=(1, 2))
    local = [encoder.local_vectors([encoder.prepare(encoder.read(p))]) for p in PHOTOS[:16]]
    found = fit_whitenings(local, encoder.settings, encoder.backbone.n_features)
    assert found.classes.n_samples_ == 16 * 3
    assert found.regions.n_samples_ == 16 * 5


def test_fitting_says_on_how_many_photos_or_what_it_is_told_to(fitted):
    assert fitted[0].whitening_origin == "fitted on 16 photos"
    encoder = tiny(dim=8).fit(PHOTOS[:4], origin="my holiday")
    assert encoder.whitening_origin == "my holiday"


def test_fitting_again_forgets_the_first_fit():
    encoder = tiny(dim=8).fit(PHOTOS[:4])
    again = encoder.fit(PHOTOS[4:8])
    assert again is encoder
    assert encoder.fingerprint == tiny(dim=8).fit(PHOTOS[4:8]).fingerprint
    assert encoder.fingerprint != tiny(dim=8).fit(PHOTOS[:4]).fingerprint


def test_an_encoder_without_whitening_can_be_given_one_by_a_fit():
    encoder = tiny(whitening=None)
    assert encoder.dim == 96
    with pytest.warns(ReducedDimensionWarning, match="from 96 to 8 dimensions"):
        encoder.fit(PHOTOS[:4])
    assert encoder.dim == 8
    assert encoder.encode([CHELSEA])[0].descriptor.shape == (8,)


# --- the guard on sample counts ------------------------------------------------------------------


def test_with_fewer_than_4_vectors_a_dimension_d_is_reduced_with_one_warning():
    encoder = tiny(dim=64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encoder.fit(PHOTOS[:8])
    assert [warning.category for warning in caught] == [ReducedDimensionWarning]
    message = str(caught[0].message)
    assert message.startswith("whitening reduced from 64 to 16 dimensions: 8 photos gave 64 vec")
    assert caught[0].filename == __file__
    assert encoder.dim == encoder.settings.dim == 16
    encoding = encoder.encode([CHELSEA])[0]
    assert encoding.class_vectors.shape == (16, 16)
    assert encoding.region_vectors.shape == (14, 16)


def test_the_scarcer_kind_of_vector_decides():
    encoder = tiny(dim=64, region_levels=(1, 2))  # 5 regions, 8 classes
    with pytest.warns(ReducedDimensionWarning, match="8 photos gave 40 vectors"):
        encoder.fit(PHOTOS[:8])
    assert encoder.dim == 10
    assert encoder.whitenings is not None
    assert encoder.whitenings.classes.components_.shape == (10, 96)


def test_enough_vectors_give_the_dimensions_asked_for_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tiny(dim=16).fit(PHOTOS[:8]).dim == 16


@pytest.mark.parametrize("settings", [{"dim": 32}, {"dim": 8, "n_fit_classes": 1}])
def test_too_few_photos_for_any_whitening_are_refused(settings):
    encoder = tiny(**settings)
    with pytest.raises(WhiteningError, match="too few to fit a whitening"):
        encoder.fit(PHOTOS[:3])
    with pytest.raises(WhiteningError):  # and it is no half-fitted encoder
        encoder.encode([CHELSEA])
    assert encoder.whitening_origin == "none yet: call fit"


def test_no_photos_are_refused(tmp_path):
    for nothing in ([], tmp_path):
        with pytest.raises(WhiteningError, match=r"none of the 0 photos .* at least 4 "):
            tiny(dim=8).fit(nothing)


# --- photos that cannot be read ------------------------------------------------------------------


def test_photos_that_cannot_be_read_are_passed_over_with_one_warning(fitted):
    _, caught, progress = fitted
    assert [warning.category for warning in caught] == [UserWarning]
    message = str(caught[0].message)
    assert message.startswith("2 of 18 photos were not fitted on; the first: ")
    assert "03_empty.jpg' is empty (0 bytes)" in message
    assert progress[-1] == (18, 18)
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)


def test_when_none_can_be_read_the_fit_is_refused():
    with (
        pytest.warns(UserWarning, match="2 of 2 photos were not fitted on"),
        pytest.raises(WhiteningError, match="none of the 2 photos to fit on could be read"),
    ):
        tiny(dim=8).fit([b"not a photo", b""])


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ImageError, match="does not exist"):
        tiny(dim=8).fit(tmp_path / "gone")


# --- what photos may be --------------------------------------------------------------------------


def test_photos_are_files_folders_globs_and_several_of_them(folder, tmp_path):
    other = saved(tmp_path / "other.png")
    every = sorted(str(path) for path in folder.iterdir() if path.suffix != ".txt")
    assert photo_items(folder) == every
    assert photo_items(str(folder / "0*.png")) == [
        name for name in every if "/0" in name.removeprefix(str(folder)) and name.endswith(".png")
    ]
    assert photo_items([folder, str(other), other]) == sorted([*every, str(other)])
    assert photo_items(other) == [str(other)]


def test_photos_may_be_images_as_such_and_from_a_generator():
    for given in (PHOTOS[:3], (photo for photo in PHOTOS[:3])):
        assert all(a is b for a, b in zip(photo_items(given), PHOTOS[:3], strict=True))
    data = CHELSEA.tobytes()
    assert photo_items([COFFEE, "cat.png", data])[1:] == ["cat.png", data]


@pytest.mark.parametrize("photo", [CHELSEA, b"bytes", torch.zeros(3, 9, 9)])
def test_one_image_is_one_photo_and_no_sequence_of_rows(photo):
    assert len(photo_items(photo)) == 1


def test_the_order_of_the_photos_and_the_batch_size_do_not_matter():
    forth = tiny(dim=8, batch_size=3).fit(PHOTOS[:6])
    back = tiny(dim=8, batch_size=1).fit(PHOTOS[:6][::-1])
    for a, b in zip(forth.encode([CHELSEA, COFFEE]), back.encode([CHELSEA, COFFEE]), strict=True):
        assert a.descriptor @ b.descriptor > 0.9999
        assert np.abs(a.region_vectors - b.region_vectors).max() < 0.01


def test_a_fit_is_for_the_size_it_was_made_at():
    whitenings = tiny(dim=8).fit(PHOTOS[:4]).whitenings
    with pytest.raises(WhiteningError, match="image_size=160, the encoder has image_size=192"):
        tiny(dim=8, image_size=192, whitening=whitenings)
