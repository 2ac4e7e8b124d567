"""The encoder: photos and queries in, vectors out; kept whole, restored bit for bit."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator

import numpy as np
import PIL.Image
import pytest
import torch
from feature_maps import float64, reference_channel_weights, reference_class_maps, unit
from photo_files import encoded, saved
from skimage import data as photos
from small_encoders import (
    ARRAYS,
    CHELSEA,
    COFFEE,
    HUBBLE,
    ROCKET,
    alike,
    crops,
    network_built_once,
    small,
    tiny,
    with_settings,
)

from cwf_milvus.backbones.weights import find_weights, load_state_dict
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.encode.saved import WHITENING_FILE
from cwf_milvus.encode.whitenings import Whitenings
from cwf_milvus.errors import (
    BoxError,
    BoxWarning,
    ImageError,
    SettingsError,
    WeightsError,
    WhiteningError,
)
from cwf_milvus.method.regions import heat_boxes
from cwf_milvus.photos.box import Box
from cwf_milvus.photos.images import load_image, resize, target_size

CAT = {281, 282, 283, 284, 285}  # ImageNet's house cats
BOX = (120, 40, 330, 210)


@pytest.fixture(scope="module", autouse=True)
def one_network() -> Iterator[None]:
    with network_built_once():
        yield


@pytest.fixture(scope="module")
def bare() -> Encoder:
    """The default network without a whitening."""
    return small(whitening=None)


@pytest.fixture(scope="module")
def fitted() -> Encoder:
    """A tiny network with a whitening of its own."""
    return tiny(dim=24).fit(crops(12))


# --- photos --------------------------------------------------------------------------------------


def test_an_encoding_holds_unit_vectors_classes_by_rank_and_boxes_in_pixels(fitted):
    image = load_image(CHELSEA, uri="cat")
    encoding = fitted.encode([image])[0]
    assert encoding.descriptor.shape == (24,)
    assert encoding.class_vectors.shape == (16, 24)
    assert encoding.region_vectors.shape == (14, 24)
    assert encoding.region_boxes.shape == (14, 4)
    for name in ("descriptor", "class_vectors", "region_vectors"):
        lengths = np.linalg.norm(getattr(encoding, name), axis=-1)
        assert np.abs(lengths - 1).max() < 1e-5
    for name in set(ARRAYS) - {"class_ids"}:
        assert getattr(encoding, name).dtype == np.float32
    assert encoding.class_ids.dtype == np.int64
    assert len(set(encoding.class_ids)) == 16
    assert (np.diff(encoding.class_scores) <= 0).all()
    assert (encoding.uri, encoding.content) == ("cat", image.content)
    assert (encoding.width, encoding.height) == (451, 300)


def test_the_region_boxes_spread_over_the_photo_in_its_own_pixels(fitted):
    boxes = fitted.encode([HUBBLE])[0].region_boxes
    assert boxes[0].tolist() == [0, 0, 1000, 872]
    assert boxes.min(0)[:2].tolist() == [0, 0]
    assert boxes.max(0)[2:].tolist() == [1000, 872]
    assert (boxes[:, 2] > boxes[:, 0]).all()
    assert (boxes[:, 3] > boxes[:, 1]).all()


def test_real_weights_know_a_cat_and_an_espresso():
    encoder = small(whitening=None, class_image_size=224)
    cat, cup = encoder.encode([CHELSEA, COFFEE])
    assert set(cat.class_ids[:3]) <= CAT
    assert encoder.class_names[cup.class_ids[0]] == "espresso"


def test_photos_of_mixed_grids_keep_their_order_and_equal_themselves_alone():
    encoder = small(whitening=None, batch_size=2)
    given = [CHELSEA, HUBBLE, ROCKET, CHELSEA[:, ::-1].copy(), COFFEE, HUBBLE[::-1].copy()]
    together = encoder.encode(given)
    grids = {encoder.prepare(load_image(photo)).grid for photo in given}
    assert len(grids) == 2
    for photo, encoding in zip(given, together, strict=True):
        alone = encoder.encode([photo])[0]
        assert encoding.content == alone.content == load_image(photo).content
        assert encoding.class_ids.tolist() == alone.class_ids.tolist()
        assert alike(encoding, alone, 1e-5)


def test_no_photos_give_no_encodings(fitted):
    assert fitted.encode([]) == []
    assert fitted.encode(iter([])) == []
    assert fitted.encode_queries([]) == []


def test_photos_may_be_of_every_kind_that_loads(fitted, tmp_path):
    path = saved(tmp_path / "cat.png")
    tensor = torch.from_numpy(CHELSEA).permute(2, 0, 1)
    given = [path, str(path), path.read_bytes(), CHELSEA, PIL.Image.open(path), tensor]
    first, *others = fitted.encode(given)
    assert first.uri == str(path)
    for other in others:
        assert np.abs(other.descriptor - first.descriptor).max() < 1e-6


@pytest.mark.parametrize("photo", ["cat.jpg", b"bytes", CHELSEA, CHELSEA[..., 0]])
def test_one_photo_in_place_of_a_list_is_refused(fitted, photo):
    with pytest.raises(SettingsError, match=r"encode\(\[photo\]\)"):
        fitted.encode(photo)


KINDS = {
    "one pixel": np.full((1, 1, 3), 200, np.uint8),
    "black": np.zeros((300, 451, 3), np.uint8),
    "grey": photos.camera(),
    "RGBA": np.dstack([CHELSEA, CHELSEA[..., 0]]),
    "panorama": np.resize(CHELSEA, (20, 8000, 3)),
    "one column": np.resize(CHELSEA, (3000, 1, 3)),
    "palette": encoded(PIL.Image.fromarray(CHELSEA).quantize(16)),
    "CMYK": encoded(PIL.Image.fromarray(CHELSEA).convert("CMYK"), "JPEG"),
    "16 bit": CHELSEA.astype(np.uint16) * 257,
}


@pytest.mark.parametrize("resize", ["longest", "shortest"])
def test_every_readable_photo_has_as_many_finite_vectors(resize):
    encoder = small(whitening=None, resize=resize, image_size=96, class_image_size=None)
    for kind, encoding in zip(KINDS, encoder.encode(KINDS.values()), strict=True):
        assert all(np.isfinite(getattr(encoding, name)).all() for name in ARRAYS), kind
        assert encoding.class_vectors.shape == (16, 1280), kind
        assert encoding.region_vectors.shape == (14, 1280), kind
        assert np.linalg.norm(encoding.descriptor) == pytest.approx(1, abs=1e-5), kind


def test_grey_in_one_channel_or_in_three_is_the_same_photo(bare):
    one, three = bare.encode([photos.camera(), np.repeat(photos.camera()[..., None], 3, 2)])
    assert np.abs(one.descriptor - three.descriptor).max() < 1e-6


def test_a_photo_that_cannot_be_read_is_named(fitted, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(encoded(kind="JPEG")[:2000])
    with pytest.raises(ImageError, match=r"broken\.jpg' is damaged or cut off"):
        fitted.encode([CHELSEA, path])


def test_a_jpeg_is_decoded_no_larger_than_needed_and_looks_the_same(bare, tmp_path):
    large = PIL.Image.fromarray(CHELSEA).resize((3608, 2400))
    large.save(tmp_path / "large.jpg", quality=95)
    reduced = bare.read(tmp_path / "large.jpg")
    assert reduced.pixels.shape == (300, 451, 3)
    assert (reduced.width, reduced.height) == (3608, 2400)
    a, b = bare.encode([reduced, load_image(tmp_path / "large.jpg")])
    assert a.descriptor @ b.descriptor > 0.99
    assert np.array_equal(a.region_boxes, b.region_boxes)


@pytest.mark.parametrize(
    ("settings", "at_least"),
    [
        ({}, 320),
        ({"class_image_size": 224}, 448),
        ({"class_image_size": None}, 320),
        ({"resize": "shortest"}, None),
        ({"paper_compat": True}, None),
    ],
)
def test_a_decode_keeps_twice_the_pixels_of_the_largest_view(settings, at_least):
    assert tiny(whitening=None, **settings).at_least == at_least


# --- what the vectors are ------------------------------------------------------------------------


def reference(
    encoder: Encoder, photo: np.ndarray, box: tuple[int, int, int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Class vectors (N, K) and the vectors (R, K) of the encoder's own region boxes, in float64."""
    settings = encoder.settings
    prepared = encoder.prepare_query(photo, box)
    maps = encoder.backbone(prepared.view[None])
    seen = prepared.view if prepared.class_view is None else prepared.class_view
    ids = encoder.backbone.predict(seen[None]).argsort(dim=1, descending=True)
    weights = maps.class_weights(ids[:, : encoder.n_classes])
    features = float64(maps.features[0])
    class_maps = reference_class_maps(float64(maps.class_source[0]), float64(weights[0]))
    to_cells = np.array([features.shape[2] / prepared.width, features.shape[1] / prepared.height])
    boxes = np.rint(encoder.encode_query(photo, box).region_boxes * np.tile(to_cells, 2))
    in_regions = [features[:, y1:y2, x1:x2].max((1, 2)) for x1, y1, x2, y2 in boxes.astype(int)]
    x1, y1, x2, y2 = prepared.box or (0, 0, features.shape[2], features.shape[1])
    features, class_maps = features[:, y1:y2, x1:x2], class_maps[:, y1:y2, x1:x2]
    channel_weights = reference_channel_weights(features)
    region_weights = channel_weights if settings.region_channel_weights else 1
    if settings.feature_weighting == "crow":
        sums = features.sum(0)
        features = features * np.sqrt(sums / np.sqrt((sums**2).sum()))
    return (
        np.stack([unit(channel_weights * (features * one).sum((1, 2))) for one in class_maps]),
        np.stack([unit(region_weights * vector) for vector in in_regions]),
    )


@pytest.mark.parametrize(
    ("box", "settings"),
    [
        (None, {}),
        (BOX, {}),
        (BOX, {"class_image_size": None}),
        (BOX, {"feature_weighting": "crow"}),
        (None, {"region_channel_weights": False, "region_levels": (4,)}),
        (BOX, {"cam_regions": True}),
    ],
)
def test_without_whitening_vectors_have_k_dimensions_and_are_those_of_the_equations(box, settings):
    encoder = small(whitening=None, **settings)
    assert encoder.dim == 1280
    class_vectors, region_vectors = reference(encoder, CHELSEA, box)
    found = encoder.encode_query(CHELSEA, box)
    assert np.abs(found.class_vectors - class_vectors).max() < 1e-5
    assert np.abs(found.region_vectors - region_vectors).max() < 1e-5
    assert np.abs(found.descriptor - unit(class_vectors.sum(0))).max() < 1e-5
    assert encoder.whitening_origin == "none"


def test_with_a_whitening_they_are_whitened_each_kind_by_its_own(fitted):
    class_vectors, region_vectors = reference(fitted, CHELSEA)
    found = fitted.encode([CHELSEA])[0]
    classes = fitted.whitenings.classes.transform(class_vectors.astype(np.float32))
    regions = fitted.whitenings.regions.transform(region_vectors.astype(np.float32))
    assert np.abs(found.class_vectors - classes).max() < 1e-3  # small eigenvalues magnify rounding
    assert np.abs(found.region_vectors - regions).max() < 1e-3
    assert np.abs(found.class_vectors - regions[:1]).max() > 0.1


def test_the_descriptor_sums_whitened_vectors_of_classes_of_regions_or_of_both(fitted):
    found = {}
    for kind in ("classes", "regions", "both"):
        encoder = with_settings(fitted, descriptor=kind, n_pooled=5, class_share=0.25)
        found[kind] = encoder.encode([COFFEE])[0]
    of_classes = unit(found["classes"].class_vectors[:5].sum(0))
    levels = fitted.settings.region_levels  # each region weighs as its side is long
    sides = np.array([2 / (level + 1) for level in levels for _ in range(level**2)])
    of_regions = unit(sides @ found["classes"].region_vectors)
    assert np.abs(found["classes"].descriptor - of_classes).max() < 1e-5
    assert np.abs(found["regions"].descriptor - of_regions).max() < 1e-5
    assert np.abs(found["both"].descriptor - unit(0.25 * of_classes + of_regions)).max() < 1e-5


def test_the_two_likeliest_classes_maps_may_give_more_regions_at_most_five():
    encoder = small(whitening=None, cam_regions=True, image_size=320)
    without = small(whitening=None, image_size=320)
    assert (without.n_regions, encoder.n_regions) == (14, 19)
    more_regions = []
    for photo in (CHELSEA, COFFEE, ROCKET):
        plain, more = without.encode([photo])[0], encoder.encode([photo])[0]
        assert np.array_equal(more.region_boxes[:14], plain.region_boxes)
        maps = encoder.class_maps([encoder.prepare(load_image(photo))])[3]
        to_pixels = np.tile([more.width / maps.shape[3], more.height / maps.shape[2]], 2)
        expected = np.array(heat_boxes(maps[:, :2].mean(1))[0]) * to_pixels
        more_regions.append(len(expected))
        assert np.abs(more.region_boxes[14:] - expected).max() < 1e-3
        assert len(more.region_vectors) == 14 + len(expected)
    assert sum(more_regions) > 3
    assert max(more_regions) <= 5


# --- classes -------------------------------------------------------------------------------------


def test_classes_come_from_a_view_of_their_own_size_and_features_from_another():
    at_size = {size: small(whitening=None, class_image_size=size) for size in (None, 96, 224)}
    found = {size: encoder.encode([COFFEE])[0] for size, encoder in at_size.items()}
    for size in (96, 224):
        view = resize(load_image(COFFEE), *target_size(600, 400, size))
        likeliest = at_size[size].backbone.predict(view[None]).softmax(1)[0].topk(16)
        assert found[size].class_ids.tolist() == likeliest.indices.tolist()
        assert np.abs(found[size].class_scores - likeliest.values.numpy()).max() < 1e-5
        assert np.array_equal(found[size].region_vectors, found[None].region_vectors)
    assert found[96].class_ids.tolist() != found[224].class_ids.tolist()


def test_all_classes_may_be_kept_by_any_number_above_theirs():
    encoder = tiny(whitening=None, n_classes=sys.maxsize)
    assert encoder.n_classes == 1000
    encoding = encoder.encode([CHELSEA])[0]
    assert encoding.class_vectors.shape == (1000, 96)
    assert sorted(encoding.class_ids) == list(range(1000))


def test_predefined_classes_are_those_of_every_photo_whatever_it_shows():
    chosen = (285, 967, 0, 999, 657)
    encoder = small(whitening=None, classes=chosen, n_classes=2, n_pooled=2)
    assert encoder.n_classes == 5
    own = small(whitening=None, n_classes=1000).encode([CHELSEA, COFFEE])
    for encoding, of_all in zip(encoder.encode([CHELSEA, COFFEE]), own, strict=True):
        assert sorted(encoding.class_ids) == sorted(chosen)
        assert (np.diff(encoding.class_scores) <= 0).all()
        assert np.abs(encoding.descriptor - unit(encoding.class_vectors.sum(0))).max() < 1e-5
        rank = {int(id_): row for row, id_ in enumerate(of_all.class_ids)}
        expected = of_all.class_vectors[[rank[int(id_)] for id_ in encoding.class_ids]]
        assert np.abs(encoding.class_vectors - expected).max() < 1e-5


def test_predefined_classes_are_counted_from_representative_queries(bare, tmp_path):
    queries = [CHELSEA, CHELSEA[50:250, 100:400], COFFEE, HUBBLE]
    for number, query in enumerate(queries):
        PIL.Image.fromarray(query).save(tmp_path / f"{number}.png")
    counts = Counter(int(i) for encoding in bare.encode(queries) for i in encoding.class_ids)
    found = bare.predefine_classes(tmp_path, 10)
    assert len(set(found)) == 10
    frequencies = [counts[class_id] for class_id in found]
    assert frequencies == sorted(counts.values(), reverse=True)[:10]
    assert found == bare.predefine_classes(queries[::-1], 10)
    assert small(whitening=None, classes=found).n_classes == 10


def test_more_predefined_classes_than_occur_give_those_that_do_and_none_is_refused(bare):
    assert len(bare.predefine_classes([CHELSEA], 500)) == 16
    for photos_, n in (([], 5), ([CHELSEA], 0)):
        with pytest.raises(SettingsError, match="give at least 1"):
            bare.predefine_classes(photos_, n)


def test_a_predefined_class_that_the_network_lacks_is_refused():
    with pytest.raises(SettingsError, match=r"classes names 1000: .* has classes 0 to 999"):
        tiny(classes=(5, 1000))


# --- queries -------------------------------------------------------------------------------------


def test_a_query_without_a_box_is_a_photo(fitted):
    assert alike(fitted.encode_query(CHELSEA), fitted.encode([CHELSEA])[0])


def test_a_box_around_the_whole_photo_changes_nothing(bare):
    for photo in (CHELSEA, HUBBLE):
        height, width = photo.shape[:2]
        boxed, whole = bare.encode_query(photo, (0, 0, width, height)), bare.encode_query(photo)
        assert alike(boxed, whole, 1e-4)


@pytest.mark.parametrize("class_image_size", [96, None])
def test_the_classes_of_a_query_come_from_the_crop_alone(class_image_size):
    encoder = small(whitening=None, class_image_size=class_image_size)
    x1, y1, x2, y2 = BOX
    alone = encoder.encode([CHELSEA[y1:y2, x1:x2].copy()])[0]
    elsewhere = np.resize(COFFEE, CHELSEA.shape).copy()
    elsewhere[y1:y2, x1:x2] = CHELSEA[y1:y2, x1:x2]
    for photo in (CHELSEA, elsewhere):
        query = encoder.encode_query(photo, BOX)
        assert query.class_ids.tolist() == alone.class_ids.tolist()
        assert np.abs(query.class_scores - alone.class_scores).max() < 1e-5
    assert encoder.encode_query(CHELSEA).class_ids.tolist() != alone.class_ids.tolist()


def test_the_features_of_a_query_see_what_surrounds_its_box(bare):
    x1, y1, x2, y2 = BOX
    elsewhere = np.resize(COFFEE, CHELSEA.shape).copy()
    elsewhere[y1:y2, x1:x2] = CHELSEA[y1:y2, x1:x2]
    here, there = bare.encode_query(CHELSEA, BOX), bare.encode_query(elsewhere, BOX)
    alone = bare.encode([CHELSEA[y1:y2, x1:x2].copy()])[0]
    for other in (there, alone):
        assert np.abs(here.class_vectors - other.class_vectors).max() > 0.01


def test_the_regions_of_a_query_lie_within_the_cells_of_its_box(bare):
    boxes = bare.encode_query(HUBBLE, (300, 200, 700, 800)).region_boxes
    cell = np.array([1000 / 5, 872 / 4] * 2)  # 160 x 128 pixels in cells of 32
    assert boxes[0].tolist() == [200, 0, 800, 872]
    outer = boxes.min(0)[:2].tolist() + boxes.max(0)[2:].tolist()
    assert outer == boxes[0].tolist()
    assert np.abs(boxes / cell - np.rint(boxes / cell)).max() < 1e-5


def test_several_queries_of_one_photo_equal_each_alone(bare):
    boxes = [None, BOX, (0, 0, 120, 120), "200,100,451,300", Box(10, 10, 440, 290)]
    together = bare.encode_queries([(CHELSEA, box) for box in boxes])
    for box, query in zip(boxes, together, strict=True):
        assert alike(query, bare.encode_query(CHELSEA, box), 1e-5)


def test_a_querys_box_is_in_pixels_of_the_original_also_of_a_large_jpeg(bare, tmp_path):
    PIL.Image.fromarray(CHELSEA).resize((3608, 2400)).save(tmp_path / "large.jpg", quality=95)
    large = bare.encode_query(tmp_path / "large.jpg", tuple(8 * side for side in BOX))
    query = bare.encode_query(CHELSEA, BOX)
    assert np.abs(large.region_boxes / 8 - query.region_boxes).max() < 1e-3
    assert large.descriptor @ query.descriptor > 0.98
    assert large.descriptor @ query.descriptor > bare.encode_query(CHELSEA).descriptor @ (
        query.descriptor
    )


def test_the_smallest_box_is_a_query(fitted):
    with pytest.warns(BoxWarning, match="less than a cell"):
        query = fitted.encode_query(HUBBLE, (500, 500, 500.5, 500.5))
    assert np.isfinite(query.class_vectors).all()
    assert len(np.unique(query.region_boxes, axis=0)) == 1
    assert np.abs(np.linalg.norm(query.region_vectors, axis=1) - 1).max() < 1e-5


def test_paper_compat_squashes_photos_and_puts_boxes_where_the_scripts_do():
    correct = tiny(whitening=None, resize="squash", class_image_size=None)
    scripts = tiny(whitening=None, paper_compat=True, class_image_size=None)
    assert scripts.prepare(load_image(CHELSEA)).view.shape == (3, 720, 1024)
    assert alike(correct.encode([CHELSEA])[0], scripts.encode([CHELSEA])[0])
    assert correct.prepare_query(CHELSEA, BOX).box == (8, 3, 24, 16)
    assert scripts.prepare_query(CHELSEA, BOX).box == (3, 1, 11, 7)
    assert not alike(correct.encode_query(CHELSEA, BOX), scripts.encode_query(CHELSEA, BOX))


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((50, 50, 50, 90), "no area"),
        ((90, 50, 50, 90), "no area"),
        ((451, 0, 500, 90), "outside the photo"),
        ("1,2,3", "not four numbers"),
        ((0, 0, float("nan"), 5), "not finite"),
    ],
)
def test_a_box_that_cannot_be_is_refused(fitted, box, reason):
    with pytest.raises(BoxError, match=reason):
        fitted.encode_query(CHELSEA, box)


# --- whitening -----------------------------------------------------------------------------------


def test_the_default_encoder_works_at_once_with_the_whitening_that_ships():
    encoder = Encoder()
    default = Whitenings.default("efficientnet_lite0")
    assert encoder.whitening_origin == default.origin
    assert encoder.dim == encoder.settings.dim == 1024
    cat, again, cup = encoder.encode([CHELSEA, CHELSEA[:, ::-1].copy(), COFFEE])
    assert cat.descriptor.shape == (1024,)
    assert cat.descriptor @ again.descriptor > 0.5 > cat.descriptor @ cup.descriptor


def test_fewer_dimensions_than_the_whitenings_are_a_cut_of_it(fitted):
    cut = with_settings(fitted, dim=10)
    assert cut.dim == 10
    whole, short = fitted.encode([CHELSEA])[0], cut.encode([CHELSEA])[0]
    assert short.descriptor.shape == (10,)
    for full, part in zip(whole.region_vectors, short.region_vectors, strict=True):
        assert np.abs(unit(full[:10]) - part).max() < 1e-5


def test_a_whitening_may_be_a_pair_a_file_or_the_folder_of_an_encoder(fitted, tmp_path):
    folder = fitted.save(tmp_path / "encoder")
    settings = fitted.settings.to_dict()
    for source in (fitted.whitenings, folder, str(folder / WHITENING_FILE)):
        encoder = Encoder(weights="random", whitening=source, **settings)
        assert encoder.fingerprint == fitted.fingerprint


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dim": 25}, "dim=25 asked of a whitening (fitted on 12 photos) of 24 dimensions"),
        ({"image_size": 192}, "fitted at image_size=160, the encoder has image_size=192"),
        ({"class_image_size": None}, "class_image_size=96, the encoder has class_image_size=None"),
        ({"paper_compat": True}, "paper_compat=False, the encoder has paper_compat=True"),
    ],
)
def test_a_whitening_that_does_not_fit_is_refused_with_both_values(fitted, changes, expected):
    with pytest.raises(WhiteningError) as caught:
        with_settings(fitted, **changes)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: tiny(dim=24), "no whitening ships for 'timm:test_resnet'"),
        (lambda: small(), "the encoder has image_size=160"),
        (lambda: Encoder(dim=1100), "dim=1100 asked of a whitening"),
    ],
)
def test_an_encoder_that_no_whitening_ships_for_can_do_nothing_but_be_fitted(make, reason):
    encoder = make()
    assert encoder.whitening_origin == "none yet: call fit"
    calls = [lambda: encoder.encode([CHELSEA]), lambda: encoder.encode_query(CHELSEA)]
    for call in [*calls, encoder.state]:
        with pytest.raises(WhiteningError, match=reason):
            call()


def test_dimensions_without_a_whitening_are_refused():
    with pytest.raises(SettingsError, match=r"dim=64 asked for without a whitening, .* 96 dim"):
        tiny(whitening=None, dim=64)
    assert tiny(whitening=None, dim=96).dim == 96


# --- networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_cannot_be_had_is_refused_by_name(device):
    with pytest.raises(SettingsError, match=f"device '{device}' cannot be had"):
        tiny(device=device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_vectors_of_the_cpu():
    on_cpu, on_gpu = small(whitening=None, device="cpu"), small(whitening=None, device="cuda")
    assert on_gpu.device.type == "cuda"
    queries = [(CHELSEA, BOX), (HUBBLE, None)]
    for a, b in zip(on_cpu.encode_queries(queries), on_gpu.encode_queries(queries), strict=True):
        assert np.abs(a.descriptor - b.descriptor).max() < 1e-2
    assert on_cpu.fingerprint == on_gpu.fingerprint


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_nothing_is_refused(batch_size):
    with pytest.raises(SettingsError, match=f"batch_size={batch_size}: give a whole number"):
        tiny(batch_size=batch_size)


def test_settings_and_networks_that_do_not_exist_are_named():
    with pytest.raises(SettingsError, match="unknown setting sise"):
        tiny(sise=512)
    with pytest.raises(SettingsError, match="no backbone 'efficientnet_light0'"):
        Encoder("efficientnet_light0")


def test_nan_in_weights_is_refused_by_the_weights_name(tmp_path):
    state = dict(load_state_dict(find_weights("efficientnet_lite0")))
    name = next(name for name, value in state.items() if value.ndim == 4)
    state[name] = torch.full_like(state[name], torch.nan)
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(WeightsError, match="holds NaN or infinity") as caught:
        small(weights=tmp_path / "nan.pth")
    assert name in str(caught.value)
