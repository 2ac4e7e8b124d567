"""The operators as plain callables: the encoder's own vectors, rows in and out of Milvus."""

from __future__ import annotations

import ast
import copy
import gc
import inspect
import io
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from operator_photos import EMBED, fitted, write_photos
from small_encoders import CHELSEA, COFFEE, ROCKET, SMALL, crops

import cwf_milvus
from cwf_milvus.encode.encoder import Encoder
from cwf_milvus.errors import (
    BoxError,
    CollectionError,
    ImageError,
    SettingsError,
    WhiteningError,
)
from cwf_milvus.method.whitening import Whitening
from cwf_milvus.operators import (
    CamRerank,
    CamVggEmbed,
    ClassWeightPool,
    InstanceInsert,
    InstanceSearch,
    PcaWhiten,
)
from cwf_milvus.operators.install import install, operator_names, uninstall
from cwf_milvus.sharing import shared_encoder
from cwf_milvus.store import lite

PACKAGE = Path(cwf_milvus.__file__).parent
OF_BOTH = {"descriptor": "both"}
PHOTOS = [CHELSEA, COFFEE, ROCKET, CHELSEA[:, :200]]  # grids of several shapes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, and the encoder whose descriptor is of both kinds of vectors."""
    root = tmp_path_factory.mktemp("operators")
    write_photos(root / "photos")
    fitted(**OF_BOTH).save(root / "encoder")
    return root


@pytest.fixture
def place(folder: Path) -> tuple[str, str, Path]:
    """The database of photos, indexed once, and the photos' folder."""
    uri = str(folder / "photos.db")
    if not Path(uri).exists():
        insert = InstanceInsert(uri, "things", str(folder / "encoder"))
        photos = sorted(str(p) for p in (folder / "photos").iterdir())
        insert(photos, metadata=[{"year": 2000 + i} for i in range(len(photos))])
    return uri, "things", folder / "photos"


# The chain


@pytest.mark.parametrize(
    "settings",
    [
        {"descriptor": "classes"},
        {"descriptor": "classes", "n_pooled": 5},
        {"descriptor": "classes", "feature_weighting": "crow"},
        {"descriptor": "classes", "classes": tuple(range(280, 300))},
        {"descriptor": "regions"},
        OF_BOTH,
    ],
    ids=str,
)
def test_the_chain_gives_the_very_descriptor_that_the_encoder_gives(
    settings: dict[str, object], tmp_path: Path
) -> None:
    encoder = fitted(**settings)
    encoder.save(tmp_path)
    embed = CamVggEmbed(**EMBED, classes=encoder.settings.classes)
    of_regions = settings["descriptor"] != "classes"
    pool = ClassWeightPool(
        feature_weighting=encoder.settings.feature_weighting,
        region_levels=encoder.settings.region_levels if of_regions else (),
    )
    whiten = PcaWhiten(str(tmp_path))
    features, class_maps, _ = embed(PHOTOS)
    pooled = pool(features, class_maps)
    descriptors = whiten(*pooled) if of_regions else whiten(pooled)
    expected = encoder.encode(PHOTOS)
    for photo, descriptor, encoding in zip(PHOTOS, descriptors, expected, strict=True):
        assert np.abs(descriptor - encoding.descriptor).max() < 1e-6
        one = pool(*embed(photo)[:2])  # and each photo by itself
        alone = whiten(*one) if of_regions else whiten(one)
        assert np.abs(alone - encoding.descriptor).max() < 1e-6


def test_whitened_class_vectors_and_ids_are_the_encoders(folder: Path) -> None:
    encoder = Encoder.load(folder / "encoder")
    features, class_maps, ids = CamVggEmbed(**EMBED)(COFFEE)
    vectors = PcaWhiten(folder / "encoder", aggregate=False)(
        ClassWeightPool()(features, class_maps)
    )
    encoding = encoder.encode([COFFEE])[0]
    assert ids.tolist() == encoding.class_ids.tolist()
    assert np.abs(vectors - encoding.class_vectors).max() < 1e-6


def test_the_chain_of_the_papers_network_at_conv5_1_is_its_encoders() -> None:
    embed = CamVggEmbed(
        "vgg16_cam",
        "conv5_1",
        weights="random",
        image_size=128,
        class_image_size=64,
        resize="longest",
    )
    encoder = embed.encoder
    features, class_maps, ids = embed(CHELSEA)
    assert features.shape == (512, 5, 8)
    assert class_maps.shape == (64, 5, 8)
    assert ids.shape == (64,)
    assert features.min() >= 0
    assert 0 <= class_maps.min() <= class_maps.max() <= 1
    pooled = ClassWeightPool(region_levels=encoder.settings.region_levels)(features, class_maps)
    descriptor = PcaWhiten(encoder)(*pooled)
    assert np.abs(descriptor - encoder.encode([CHELSEA])[0].descriptor).max() < 1e-6


def test_tensors_are_taken_as_arrays_are(folder: Path) -> None:
    features, class_maps, _ = CamVggEmbed(**EMBED)(COFFEE)
    pool = ClassWeightPool()
    of_tensors = pool(torch.from_numpy(features), torch.from_numpy(class_maps))
    assert (of_tensors == pool(features, class_maps)).all()


def test_channel_weights_can_be_left_out() -> None:
    features, class_maps, _ = CamVggEmbed(**EMBED)(COFFEE)
    sums = np.einsum("khw,nhw->nk", features.astype(float), class_maps.astype(float))
    expected = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    assert (
        np.abs(ClassWeightPool(channel_weights=False)(features, class_maps) - expected).max() < 1e-5
    )


def test_a_file_with_one_whitening_sums_the_classes(tmp_path: Path) -> None:
    vectors = np.abs(np.random.default_rng(0).normal(size=(200, 96))).astype(np.float32)
    whitening = Whitening(16).fit(vectors)
    whitening.save(tmp_path / "one.safetensors")
    expected = whitening.transform(vectors[:5]).sum(0)
    descriptor = PcaWhiten(tmp_path / "one.safetensors")(vectors[:5])
    assert np.abs(descriptor - expected / np.linalg.norm(expected)).max() < 1e-6


def test_the_whitening_of_an_encoder_comes_from_its_file_too(folder: Path) -> None:
    vectors = np.random.default_rng(0).random((16, 96), dtype=np.float32)
    of_file = PcaWhiten(folder / "encoder" / "whitening.safetensors", aggregate=False)
    assert (of_file(vectors) == PcaWhiten(folder / "encoder", aggregate=False)(vectors)).all()


def test_the_whitening_of_a_collection_needs_no_network(
    place: tuple[str, str, Path], folder: Path
) -> None:
    vectors = np.random.default_rng(0).random((16, 96), dtype=np.float32)
    whiten = PcaWhiten(f"{place[0]}#{place[1]}", aggregate=False)
    assert (whiten(vectors) == PcaWhiten(folder / "encoder", aggregate=False)(vectors)).all()
    assert whiten.dim == 96


def test_a_descriptor_that_lacks_what_the_encoder_sums_is_refused(folder: Path) -> None:
    whiten = PcaWhiten(folder / "encoder")
    vectors = np.ones((16, 96), np.float32)
    with pytest.raises(SettingsError, match=r"region_levels=\(1, 2, 3\)"):
        whiten(vectors)
    with pytest.raises(SettingsError, match="n_classes=16"):
        whiten(vectors[:8], vectors)


@pytest.mark.parametrize(
    ("source", "error"),
    [("nowhere", WhiteningError), (3, WhiteningError), ("nowhere.db#things", CollectionError)],
)
def test_a_source_without_a_whitening_is_refused_by_name(
    source: object, error: type[Exception]
) -> None:
    with pytest.raises(error, match=str(source).partition("#")[0]):
        PcaWhiten(source)


def test_a_damaged_encoder_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"settings": {"image_size": "large"}}')
    with pytest.raises(SettingsError, match="image_size"):
        PcaWhiten(tmp_path)
    (tmp_path / "settings.json").write_text("[]")
    with pytest.raises(SettingsError, match="holds no encoder"):
        PcaWhiten(tmp_path)


def test_maps_of_another_image_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"\(K, H, W\) and \(N, H, W\)"):
        ClassWeightPool()(np.ones((8, 4, 4)), np.ones((2, 3, 4)))


# Images


class WithMode(np.ndarray):
    """What `ops.image_decode` gives: an array that says its order of channels."""

    mode: str


def with_mode(pixels: np.ndarray, mode: str) -> np.ndarray:
    array = np.ascontiguousarray(pixels).view(WithMode)
    array.mode = mode
    return array


GREY = CHELSEA[..., 1]
RGBA = np.dstack([CHELSEA, np.full(CHELSEA.shape[:2], 255, np.uint8)])


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("given", "same_as"),
    [
        (with_mode(CHELSEA[..., ::-1], "BGR"), CHELSEA),
        (with_mode(RGBA[..., [2, 1, 0, 3]], "BGRA"), CHELSEA),
        (with_mode(CHELSEA, "RGB"), CHELSEA),
        (with_mode(GREY, "BGR"), GREY),  # a slice keeps a stale mode
        (RGBA, CHELSEA),
        (CHELSEA.astype(np.uint16) * 257, CHELSEA),
        (PIL.Image.fromarray(CHELSEA), CHELSEA),
        (_png(CHELSEA), CHELSEA),
        (torch.from_numpy(CHELSEA).permute(2, 0, 1), CHELSEA),
    ],
    ids=["bgr", "bgra", "rgb", "stale", "rgba", "16-bit", "pil", "bytes", "tensor"],
)
def test_an_image_of_any_kind_gives_what_its_rgb_pixels_give(
    given: object, same_as: np.ndarray
) -> None:
    embed = CamVggEmbed(**EMBED)
    for ours, expected in zip(embed(given), embed(same_as), strict=True):
        assert (ours == expected).all()


def test_another_colour_space_is_refused_by_name() -> None:
    with pytest.raises(ImageError, match="HSV"):
        CamVggEmbed(**EMBED)(with_mode(CHELSEA, "HSV"))


# Sharing


def test_threads_share_one_network_and_get_what_one_gets() -> None:
    made = [CamVggEmbed(**EMBED) for _ in range(3)]
    assert len({id(embed.encoder) for embed in made}) == 1
    expected = [made[0](photo) for photo in PHOTOS]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: made[i % 3](PHOTOS[i % 4]), range(24)))
    for i, answer in enumerate(answers):
        for ours, theirs in zip(answer, expected[i % 4], strict=True):
            assert (ours == theirs).all()


def test_a_copy_of_an_operator_is_itself() -> None:
    embed = CamVggEmbed(**EMBED)
    assert copy.deepcopy({"op": [embed]})["op"][0] is embed


def test_other_arguments_make_another_network() -> None:
    assert CamVggEmbed(**EMBED).encoder is not CamVggEmbed(**EMBED | {"image_size": 96}).encoder


def test_a_network_is_let_go_with_its_last_user() -> None:
    embed = CamVggEmbed(**EMBED | {"image_size": 64})
    network = weakref.ref(embed.encoder.backbone)
    del embed
    gc.collect()
    assert network() is None


def test_threads_that_ask_at_once_get_one_encoder() -> None:
    gate = threading.Barrier(6)

    def ask(_: int) -> Encoder:
        gate.wait()
        return shared_encoder("timm:test_resnet", weights="random", whitening=None, image_size=96)

    with ThreadPoolExecutor(6) as pool:
        assert len({id(encoder) for encoder in list(pool.map(ask, range(6)))}) == 1


def test_a_saved_encoder_takes_no_other_settings(folder: Path) -> None:
    with pytest.raises(SettingsError, match="image_size"):
        shared_encoder(folder / "encoder", image_size=96)


def test_a_database_is_let_go_with_its_last_operator(folder: Path) -> None:
    uri = str(folder / "brief.db")
    insert = InstanceInsert(uri, "things", str(folder / "encoder"))
    search = InstanceSearch(uri, "things")
    assert search.photos is insert.photos
    assert any(path.endswith("brief.db") for path in lite._lite_users)
    del insert, search
    gc.collect()
    assert not any(path.endswith("brief.db") for path in lite._lite_users)


# Milvus


def test_a_bad_photo_is_told_and_the_others_are_stored(folder: Path) -> None:
    insert = InstanceInsert(str(folder / "some.db"), "things", str(folder / "encoder"))
    photos = folder / "photos"
    ids, errors = insert(
        [photos / "cat.png", photos / "damaged.jpg", photos / "missing.jpg", b"no photo", ROCKET],
        uris=[None, None, None, "of bytes", "rocket"],
    )
    assert [bool(error) for error in errors] == [False, True, True, True, False]
    assert "damaged.jpg" in errors[1]
    assert "missing.jpg" in errors[2]
    assert ids == [*(str(photos / n) for n in ("cat.png", "damaged.jpg", "missing.jpg")), *ids[3:]]
    assert ids[3:] == ["of bytes", "rocket"]
    assert sorted(insert.photos.uris()) == sorted([ids[0], "rocket"])
    assert insert(COFFEE)[1] == ""
    assert insert.photos.count() == 3


def test_threads_that_insert_the_same_photos_store_each_once(folder: Path) -> None:
    insert = InstanceInsert(str(folder / "threads.db"), "things", str(folder / "encoder"))
    photos = {f"piece {i}": piece for i, piece in enumerate(crops(12))}

    def store(_: int) -> list[str]:
        return insert(list(photos.values()), uris=list(photos))[1]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(store, range(4))) == [[""] * 12] * 4
    assert insert.photos.count() == 12
    assert insert.photos.verify().ok


def test_rows_hold_id_score_and_the_fields_asked_for(place: tuple[str, str, Path]) -> None:
    uri, name, photos = place
    search = InstanceSearch(
        uri, name, limit=2, output_fields=["year", "width", "box"], rerank="none", expand="none"
    )
    rows = search(photos / "cup.png", (80, 14, 478, 390))
    assert [len(row) for row in rows] == [5, 5]
    assert rows[0][0] == str(photos / "cup.png")
    assert rows[0][1] >= rows[1][1]
    assert rows[0][2:] == [2001, 600, []]


def test_several_queries_give_a_list_each(place: tuple[str, str, Path]) -> None:
    uri, name, photos = place
    search = InstanceSearch(uri, name, limit=1)
    answers = search([photos / "cat.png", ROCKET], [(90, 5, 355, 275), None])
    assert [Path(rows[0][0]).stem for rows in answers] == ["cat", "rocket"]
    with pytest.raises(SettingsError, match="boxes for 2 images"):
        search([CHELSEA, ROCKET], [None])


def test_descriptors_from_the_chain_search_as_their_photos_do(
    place: tuple[str, str, Path],
) -> None:
    uri, name, _ = place
    features, class_maps, _ = CamVggEmbed(**EMBED)([CHELSEA, COFFEE])
    pool = ClassWeightPool(region_levels=SMALL["region_levels"])
    descriptors = PcaWhiten(f"{uri}#{name}")(*pool(features, class_maps))
    search = InstanceSearch(uri, name, limit=3, filter="year > 1999", rerank="none", expand="none")
    for by_vector, by_photo in zip(search(descriptors), search([CHELSEA, COFFEE]), strict=True):
        assert [row[0] for row in by_vector] == [row[0] for row in by_photo]
        assert [row[1] for row in by_vector] == pytest.approx(
            [row[1] for row in by_photo], abs=1e-5
        )


def test_a_descriptor_is_refused_where_only_a_photo_will_do(
    place: tuple[str, str, Path],
) -> None:
    uri, name, _ = place
    descriptor = np.ones(96, np.float32) / 96**0.5
    with pytest.raises(SettingsError, match="rerank"):
        InstanceSearch(uri, name, rerank="regions")(descriptor)
    with pytest.raises(SettingsError, match="a box"):
        InstanceSearch(uri, name, rerank="none", expand="none")(descriptor, np.array([0, 0, 9, 9]))


def test_a_filter_leaves_only_what_it_says(place: tuple[str, str, Path]) -> None:
    uri, name, photos = place
    rows = InstanceSearch(uri, name, filter="year == 2001")(CHELSEA)
    assert [row[0] for row in rows] == [str(photos / "cup.png")]


def test_a_box_without_area_is_refused(place: tuple[str, str, Path]) -> None:
    with pytest.raises(BoxError, match="no area"):
        InstanceSearch(*place[:2])(CHELSEA, (10, 10, 5, 5))
    with pytest.raises(BoxError, match="not four numbers"):
        InstanceSearch(*place[:2])(CHELSEA, 10)


@pytest.mark.parametrize("method", ["regions", "classes", "online"])
def test_hits_are_reranked_as_the_collections_own_search_does(
    place: tuple[str, str, Path], method: str
) -> None:
    uri, name, photos = place
    box = (80, 14, 478, 390)
    given = InstanceSearch(uri, name, rerank="none", expand="none")(photos / "cup.png", box)[::-1]
    rerank = CamRerank(uri, name, method=method, output_fields=["box"])
    rows = rerank(photos / "cup.png", box, given)
    expected = rerank.photos.search(photos / "cup.png", box=box, rerank=method)
    assert [row[0] for row in rows] == [hit.uri for hit in expected]
    assert [row[1] for row in rows] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    if method == "regions":
        assert len(rows[0][2]) == 4


def test_ids_alone_can_be_reranked_and_expanded(place: tuple[str, str, Path]) -> None:
    uri, name, photos = place
    ids = [str(photos / f"{stem}.png") for stem in ("rocket", "cat", "cup")]
    rows = CamRerank(uri, name, expand=2)(photos / "cat.png", None, ids)
    assert rows[0][0] == ids[1]
    assert sorted(row[0] for row in rows) == sorted(ids)
    assert CamRerank(uri, name)(photos / "cat.png", None, []) == []


def test_a_hit_that_is_not_in_the_collection_is_refused_by_name(
    place: tuple[str, str, Path],
) -> None:
    with pytest.raises(CollectionError, match=r"elsewhere\.jpg"):
        CamRerank(*place[:2])(CHELSEA, None, [["elsewhere.jpg", 0.5]])


def test_an_unknown_method_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(SettingsError, match="magic"):
        CamRerank("nowhere.db", "things", method="magic")


# Towhee


def test_only_one_module_imports_towhee() -> None:
    found = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.split(".")[0] == "towhee" for name in names):
                found.append(file.relative_to(PACKAGE).as_posix())
    assert set(found) == {"towhee.py"}


def test_every_folder_of_the_hub_is_whole() -> None:
    assert operator_names() == [
        "cam_rerank",
        "cam_vgg_embed",
        "class_weight_pool",
        "instance_insert",
        "instance_search",
        "pca_whiten",
    ]
    for name in operator_names():
        folder = PACKAGE / "data" / "hub" / name
        readme = (folder / "README.md").read_text()
        for part in ("Description", "Code Example", "Factory Constructor", "Interface"):
            assert f"\n## {part}\n" in readme, name
        assert (folder / "requirements.txt").read_text() == "cwf-milvus\n"
        assert (folder / f"{name}.py").is_file()
        core = getattr(cwf_milvus.operators, name.title().replace("_", ""))
        for argument in inspect.signature(core).parameters.values():
            assert f"**{argument.name}**" in readme, f"{name}: {argument.name}"
            if argument.default not in (inspect.Parameter.empty, None, ()):
                shown = str(argument.default).strip("'")
                assert shown in readme, f"{name}: {argument.name}={shown}"


def test_links_are_made_replaced_and_removed_and_nothing_else(tmp_path: Path) -> None:
    other = tmp_path / "operators" / "cwf" / "mine" / "versions" / "main"
    other.mkdir(parents=True)
    links = install(tmp_path)
    assert len(links) == 6
    assert all(link.is_symlink() and (link / "README.md").is_file() for link in links)
    links[0].unlink()
    links[0].symlink_to(tmp_path / "cwf_milvus" / "hub" / "cam_rerank")  # as 0.1.0 had it
    assert install(tmp_path) == links
    assert sorted(uninstall(tmp_path)) == sorted(links)
    assert [path.name for path in (tmp_path / "operators" / "cwf").iterdir()] == ["mine"]
    assert other.is_dir()
    assert uninstall(tmp_path) == []


def test_what_stands_in_a_links_place_is_never_touched(tmp_path: Path) -> None:
    there = tmp_path / "operators" / "cwf" / "cam-vgg-embed" / "versions" / "main"
    there.mkdir(parents=True)
    (there / "mine.py").write_text("")
    with pytest.raises(SettingsError, match="cam-vgg-embed"):
        install(tmp_path)
    assert uninstall(tmp_path) == []
    assert (there / "mine.py").is_file()
    assert not list((tmp_path / "operators" / "cwf").glob("*/versions/main/README.md"))


def test_towhees_folder_is_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOWHEE_HOME", str(tmp_path / "home"))
    assert all(link.is_relative_to(tmp_path / "home") for link in install())
    uninstall()
    assert not list((tmp_path / "home").rglob("*"))
