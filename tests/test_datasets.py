import codecs
import io
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from cwf_milvus.errors import SettingsError
from cwf_milvus.evaluation import evaluate_rankings, load_dataset
from cwf_milvus.evaluation.datasets.buildings import CORRUPT_PARIS
from cwf_milvus.evaluation.datasets.pickles import as_list, read_plain_pickle
from cwf_milvus.photos.box import Box


def put(root, *names, content=b"photo"):
    """Files at these paths; a loader looks at names only, so they need no pixels."""
    for name in names:
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def put_truth(folder, key, query, good="", ok="", junk=""):
    for level, text in (("query", query), ("good", good), ("ok", ok), ("junk", junk)):
        text = text if level == "query" else "".join(f"{name}\n" for name in text.split())
        put(folder, f"{key}_{level}.txt", content=text.encode())


@pytest.fixture
def oxford(tmp_path):
    put(tmp_path, *(f"jpg/all_souls_{number:06}.jpg" for number in range(5)))
    put(tmp_path, "jpg/radcliffe_camera_000001.jpg")
    put_truth(
        tmp_path / "gt",
        "all_souls_1",
        "oxc1_all_souls_000000 136.5 34.1 648.5 955.7",
        good="all_souls_000000 all_souls_000001",
        ok="all_souls_000002",
        junk="all_souls_000003",
    )
    return tmp_path


def gnd(**changes):
    return {
        "imlist": ["all_souls_000001", "all_souls_000002", "all_souls_000003", "oxford_000009"],
        "qimlist": ["all_souls_000000"],
        "gnd": [{"bbx": [1.5, 2.0, 30.0, 40.0], "easy": [0], "hard": [1], "junk": [2]}],
        **changes,
    }


@pytest.fixture
def roxford(tmp_path):
    put(
        tmp_path,
        *(f"jpg/all_souls_{number:06}.jpg" for number in range(4)),
        "jpg/oxford_000009.jpg",
    )
    return tmp_path


def put_pickle(root, value, protocol=2, name="gnd_roxford5k.pkl"):
    put(root, name, content=value if isinstance(value, bytes) else pickle.dumps(value, protocol))


def ground_truth(**changes):
    query = {"image": "queries/q.jpg", "bbox": [1, 2, 30, 40], "positives": ["jpg/a.jpg"]}
    return {
        "note": "a test",
        "images": ["jpg/a.jpg", "jpg/b.jpg", "jpg/c.jpg"],
        "queries": [query | {"junk": ["jpg/b.jpg"], "group": "thing"}],
        **changes,
    }


def put_json(root, truth):
    put(root, "jpg/a.jpg", "jpg/b.jpg", "jpg/c.jpg", "queries/q.jpg")
    put(root, "gnd.json", content=json.dumps(truth).encode())
    return load_dataset(root / "gnd.json")


# Oxford5k and Paris6k


def test_oxford_has_its_queries_in_the_database_each_with_its_box(oxford):
    dataset = load_dataset("oxford5k", oxford)
    (query,) = dataset.queries
    assert query.image == "jpg/all_souls_000000.jpg"
    assert query.image in dataset.images
    assert query.box == Box(136.5, 34.1, 648.5, 955.7)
    assert query.positives == {f"jpg/all_souls_00000{n}.jpg" for n in range(3)}
    assert query.junk == {"jpg/all_souls_000003.jpg"}
    assert query.group == "all_souls"
    assert dataset.path(query.image) == oxford / "jpg/all_souls_000000.jpg"


def test_other_counts_than_those_published_are_reported(oxford):
    lines = load_dataset("oxford5k", oxford).check()
    assert lines == [
        "6 images, where oxford5k has 5063",
        "1 queries, where oxford5k has 55",
    ]


def test_missing_and_surplus_files_are_reported_with_their_names(oxford):
    (oxford / "jpg/all_souls_000002.jpg").unlink()
    put(oxford, "jpg/selfie.jpg", "old/all_souls_000001.jpg", "jpg/paris_louvre_000001.jpg")
    dataset = load_dataset("oxford5k", oxford)
    assert dataset.missing == ("all_souls_000002.jpg",)
    assert set(dataset.surplus) == {
        "jpg/selfie.jpg",
        "old/all_souls_000001.jpg",
        "jpg/paris_louvre_000001.jpg",
    }
    assert not set(dataset.surplus) & set(dataset.images)
    told = "\n".join(dataset.check())
    assert "1 missing" in told
    assert "'all_souls_000002.jpg'" in told
    assert "3 surplus" in told
    assert "'jpg/selfie.jpg'" in told


def test_a_missing_positive_counts_as_not_found(oxford):
    (oxford / "jpg/all_souls_000002.jpg").unlink()
    dataset = load_dataset("oxford5k", oxford)
    ranking = ["jpg/all_souls_000000.jpg", "jpg/all_souls_000001.jpg"]
    assert evaluate_rankings(dataset, [ranking]).mean_ap == pytest.approx(2 / 3)


def test_a_query_whose_photo_is_missing_is_left_out_and_named(oxford):
    put_truth(oxford / "gt", "keble_1", "oxc1_keble_000214 0 0 10 10", good="all_souls_000004")
    dataset = load_dataset("oxford5k", oxford)
    assert [query.group for query in dataset.queries] == ["all_souls"]
    assert "keble_000214.jpg" in dataset.missing
    assert any("as queries" in line and "keble_000214" in line for line in dataset.check())


@pytest.mark.parametrize("folder", ["", "paris/defense/"])
def test_paris_photos_may_lie_flat_or_by_building(tmp_path, folder):
    put(tmp_path, f"{folder}paris_defense_000605.jpg", f"{folder}paris_defense_000002.JPG")
    put_truth(tmp_path, "defense_1", "paris_defense_000605 1 2 30 40", good="paris_defense_000002")
    dataset = load_dataset("paris6k", tmp_path)
    assert dataset.queries[0].image == f"{folder}paris_defense_000605.jpg"
    assert dataset.queries[0].positives == {f"{folder}paris_defense_000002.JPG"}


def test_the_corrupt_paris_photos_are_skipped_and_named(tmp_path):
    put(tmp_path, "paris_louvre_000001.jpg", *(f"{stem}.jpg" for stem in CORRUPT_PARIS))
    put_truth(
        tmp_path,
        "louvre_1",
        "paris_louvre_000001 1 2 30 40",
        good="paris_louvre_000001 paris_louvre_000136",
        junk="paris_louvre_000146",
    )
    dataset = load_dataset("paris6k", tmp_path)
    assert len(CORRUPT_PARIS) == 20
    assert set(dataset.skipped) == {f"{stem}.jpg" for stem in CORRUPT_PARIS}
    assert dataset.images == ("paris_louvre_000001.jpg",)
    assert dataset.queries[0].positives == {"paris_louvre_000001.jpg"}
    assert dataset.queries[0].junk == frozenset()
    assert dataset.missing == ()
    assert any(line.startswith("20 skipped, known to be corrupt") for line in dataset.check())


def test_distractors_are_searched_and_are_right_for_no_query(oxford, tmp_path_factory):
    outside = tmp_path_factory.mktemp("flickr")
    put(outside, "0/1.jpg", "0/all_souls_000000.jpg", "readme.txt")
    dataset = load_dataset("oxford105k", oxford, distractors=outside)
    assert dataset.name == "oxford105k"
    assert dataset.images[-2:] == ("distractor:0/1.jpg", "distractor:0/all_souls_000000.jpg")
    assert dataset.path("distractor:0/1.jpg") == outside / "0/1.jpg"
    assert dataset.check()[0] == "6 images, where oxford105k has 5063"
    assert str(dataset) == "oxford105k: 8 images, 1 queries, 2 of the images distractors"


def test_distractors_below_the_root_are_no_surplus(oxford):
    put(oxford, "more/1.jpg")
    dataset = load_dataset("oxford5k", oxford, distractors=oxford / "more")
    assert dataset.surplus == ()
    assert "distractor:1.jpg" in dataset.images
    (oxford / "more/1.jpg").unlink()
    with pytest.raises(SettingsError, match="no photo among the distractors"):
        load_dataset("oxford5k", oxford, distractors=oxford / "more")


def test_links_are_followed_and_a_loop_of_links_ends(oxford, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("disk")
    (oxford / "jpg").rename(elsewhere / "jpg")
    (oxford / "jpg").symlink_to(elsewhere / "jpg")
    (oxford / "loop").symlink_to(oxford)
    dataset = load_dataset("oxford5k", oxford)
    assert len(dataset.images) == 6
    assert dataset.surplus == ()


def test_a_link_that_leads_nowhere_is_missing(oxford):
    photo = oxford / "jpg/all_souls_000002.jpg"
    photo.unlink()
    photo.symlink_to(oxford / "gone.jpg")
    assert load_dataset("oxford5k", oxford).missing == ("all_souls_000002.jpg",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("oxc1_../../etc/passwd 1 2 3 4", "no photo of this dataset"),
        ("paris_defense_000605 1 2 3 4", "ground truth of another"),
        ("oxc1_all_souls_000000 1 2 3", "four numbers"),
        ("oxc1_all_souls_000000 1 2 3 x", "four numbers"),
        ("oxc1_all_souls_000000 1 2 1 4", "is empty"),
        ("oxc1_all_souls_000000 nan 2 3 4", "is empty"),
    ],
)
def test_a_malformed_query_file_is_named(oxford, text, message):
    put(oxford, "gt/all_souls_1_query.txt", content=text.encode())
    with pytest.raises(SettingsError, match=message) as caught:
        load_dataset("oxford5k", oxford)
    assert "all_souls_1_query.txt" in str(caught.value)


def test_an_incomplete_or_double_ground_truth_is_refused(oxford):
    put_truth(oxford / "copy", "all_souls_1", "oxc1_all_souls_000000 1 2 3 4")
    with pytest.raises(SettingsError, match="two ground truths"):
        load_dataset("oxford5k", oxford)
    (oxford / "copy/all_souls_1_query.txt").unlink()
    (oxford / "gt/all_souls_1_junk.txt").unlink()
    with pytest.raises(SettingsError, match=r"gt/all_souls_1_junk\.txt' is missing"):
        load_dataset("oxford5k", oxford)


def test_a_root_with_nothing_in_it_is_refused(tmp_path, oxford):
    with pytest.raises(SettingsError, match=r"no \*_query\.txt"):
        load_dataset("paris6k", oxford / "jpg")
    with pytest.raises(SettingsError, match="not one image is there"):
        load_dataset("oxford5k", oxford / "gt")
    for name in ("holidays", "ukbench"):
        with pytest.raises(SettingsError, match="is this the right root"):
            load_dataset(name, oxford)
    with pytest.raises(SettingsError, match="is no folder"):
        load_dataset("holidays", tmp_path / "nowhere")


# ROxford5k and RParis6k


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("numbers", [list, tuple, np.array, lambda x: np.array(x, object)])
def test_roxford_is_read_from_a_pickle_of_any_protocol(roxford, protocol, numbers):
    truth = gnd()
    truth["gnd"] = [{key: numbers(value) for key, value in truth["gnd"][0].items()}]
    put_pickle(roxford, truth, protocol)
    dataset = load_dataset("roxford5k", roxford)
    (query,) = dataset.queries
    assert query.box == Box(1.5, 2, 30, 40)
    assert query.image == "jpg/all_souls_000000.jpg"
    assert query.image not in dataset.images
    assert dataset.path(query.image).is_file()
    assert dataset.images[0] == "jpg/all_souls_000001.jpg"
    assert query.positives == {"jpg/all_souls_000001.jpg", "jpg/all_souls_000002.jpg"}
    assert query.hard == {"jpg/all_souls_000002.jpg"}
    assert query.junk == {"jpg/all_souls_000003.jpg"}
    assert dataset.setups == ("easy", "medium", "hard")
    assert dataset.expected == {"images": 4993, "queries": 70}


def test_easy_and_hard_swap_positives_and_junk(roxford):
    put_pickle(roxford, gnd())
    (query,) = load_dataset("roxford5k", roxford).queries
    assert query.at("easy").positives == {"jpg/all_souls_000001.jpg"}
    assert query.at("easy").junk == {"jpg/all_souls_000002.jpg", "jpg/all_souls_000003.jpg"}
    assert query.at("hard").positives == {"jpg/all_souls_000002.jpg"}
    assert query.at("hard").junk == {"jpg/all_souls_000001.jpg", "jpg/all_souls_000003.jpg"}
    assert query.at("medium") == query


def test_rparis_has_other_counts_and_skips_the_corrupt(tmp_path):
    put(tmp_path, "paris_louvre_000001.jpg", "paris_louvre_000002.jpg", "paris_louvre_000136.jpg")
    truth = gnd(
        imlist=["paris_louvre_000001"],
        qimlist=["paris_louvre_000002"],
        gnd=[{"bbx": [0, 0, 9, 9], "easy": [0], "hard": np.array([]), "junk": []}],
    )
    put_pickle(tmp_path, truth, name="gnd_rparis6k.pkl")
    dataset = load_dataset("rparis6k", tmp_path)
    assert dataset.expected == {"images": 6322, "queries": 70}
    assert list(dataset.skipped) == ["paris_louvre_000136.jpg"]
    assert dataset.surplus == ()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_back(data):
    Path("data.pkl").write_bytes(data)
    return read_plain_pickle("data.pkl")


def test_an_array_pickled_by_python_2_is_read(folder):
    text = struct.pack("<3q", 7, -1, 40_000).decode("latin1").encode("latin1")
    python_2 = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b"
        b"\x87R(K\x01K\x03\x85cnumpy\ndtype\nU\x02i8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U" + bytes([len(text)]) + text + b"tb."
    )
    assert pickle.loads(python_2, encoding="latin1").tolist() == [7, -1, 40_000]
    assert as_list(read_back(python_2)) == [7, -1, 40_000]


@pytest.mark.parametrize(
    "value",
    [np.float32(1.5), np.int64(-3), np.bool_(True), 2**80, "é", b"\xff", None, {"a": (1, [2.5])}],
)
@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_back_as_they_were(folder, value, protocol):
    assert read_back(pickle.dumps(value, protocol)) == value


class Runs:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "call",
    [
        Runs(exec, "open('ran', 'w')"),
        Runs(io.open, "ran", "w"),
        Runs(getattr, "", "join"),
        Runs(np.load, "ran"),
        Runs(codecs.encode, "x", "idna"),
        Runs(np.memmap, "ran", "uint8", "w+", 0, (9,)),
        np.array(["text"]),
        np.zeros(2, [("a", "i4")]),
        Path("x"),
        {1, 2},
    ],
)
def test_nothing_but_plain_data_is_read_and_nothing_is_run(folder, call, protocol):
    with pytest.raises(SettingsError, match="is refused"):
        read_back(pickle.dumps([call], protocol))
    assert not Path("ran").exists()


def array_bytes(shape, code="i8", data=b"\0" * 16, order="<"):
    """A pickle of an array that says of itself what a real one never would."""

    class Forged:
        def __reduce__(self):
            rebuild, first, _ = np.arange(2).__reduce__()
            return rebuild, first, (1, shape, ForgedType(), False, data)

    class ForgedType:
        def __reduce__(self):
            return np.dtype, (code, False, True), (3, order, None, None, None, -1, -1, 0)

    return pickle.dumps(Forged(), 2)


@pytest.mark.parametrize(
    "data",
    [
        array_bytes((3,)),
        array_bytes((1 << 60,)),
        array_bytes((2,), code="O8"),
        array_bytes((2,), code="V8"),
        array_bytes((2,), order="x"),
        b"\x80\x02cnumpy\nndarray\n)R.",
        b"\x80\x02cnumpy\nndarray\n}U\x01aK\x01sb.",  # sets an attribute of what it names
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN}U\x0c__defaults__Ns\x86b.",
        b"\x80\x02\x82\x01.",  # an extension code
        b"\x80\x02U\x01xQ.",  # a persistent id
        b"\x80\x02]r\xff\xff\xff\x7f.",  # room for two thousand million entries
        b"]p2147483647\n.",
    ],
)
def test_a_forged_pickle_is_refused(folder, data):
    with pytest.raises(SettingsError, match="is refused"):
        read_back(data)
    assert as_list(read_back(array_bytes((2,)))) == [0, 0]


def test_a_small_pickle_cannot_fill_the_memory(folder):
    once = (
        b"c_codecs\nencode\nq\x01X"
        + struct.pack("<I", 5000)
        + b"x" * 5000
        + b"q\x02U\x06latin1q\x03"
    )
    again = b"h\x01h\x02h\x03\x86Ra"
    with pytest.raises(SettingsError, match="larger than the file"):
        read_back(b"\x80\x02]" + once + b"000" + again * 2000 + b".")


@pytest.mark.parametrize("cut", [0, 1, 30, -1])
def test_a_damaged_pickle_is_named(roxford, cut):
    put_pickle(roxford, pickle.dumps(gnd(), 2)[:cut])
    with pytest.raises(SettingsError, match=r"gnd_roxford5k\.pkl' is no readable pickle"):
        load_dataset("roxford5k", roxford)


ENTRY = gnd()["gnd"][0]


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ([1], "holds no dict"),
        (gnd(imlist=None), "imlist must be a list"),
        (gnd(imlist=["../all_souls_000001"]), "no photo of this dataset"),
        (gnd(imlist=["/etc/passwd"]), "no photo of this dataset"),
        (gnd(imlist=[7]), "imlist holds a int"),
        (gnd(imlist=["all_souls_000001"] * 2), "twice"),
        (gnd(gnd=[]), "one entry for each"),
        (gnd(gnd=[[]]), r"gnd\[0\] is no dict"),
        (gnd(gnd=[ENTRY | {"easy": [4]}]), r"gnd\[0\]: easy"),
        (gnd(gnd=[ENTRY | {"hard": [-1]}]), r"gnd\[0\]: hard"),
        (gnd(gnd=[ENTRY | {"hard": [10**400]}]), r"gnd\[0\]: hard"),
        (gnd(gnd=[ENTRY | {"junk": ["0"]}]), r"gnd\[0\]: junk"),
        (gnd(gnd=[ENTRY | {"junk": None}]), r"gnd\[0\]: junk"),
        (gnd(gnd=[ENTRY | {"bbx": [1, 2, 3]}]), r"gnd\[0\]: bbx"),
        (gnd(gnd=[ENTRY | {"bbx": None}]), r"gnd\[0\]: bbx"),
        (gnd(gnd=[ENTRY | {"bbx": [1, 2, 10**400, 4]}]), r"gnd\[0\]: bbx"),
    ],
)
def test_a_malformed_revisited_truth_says_where(roxford, truth, message):
    put_pickle(roxford, truth)
    with pytest.raises(SettingsError, match=message):
        load_dataset("roxford5k", roxford)


def test_a_missing_revisited_truth_is_named(roxford):
    with pytest.raises(SettingsError, match=r"gnd_roxford5k\.pkl"):
        load_dataset("roxford5k", roxford)


# Holidays and UKBench


def test_in_holidays_the_first_of_a_group_is_the_query_and_junk_to_itself(tmp_path):
    put(tmp_path, *(f"jpg/{n}.jpg" for n in (100000, 100001, 100002, 100100, 100101)))
    dataset = load_dataset("holidays", tmp_path)
    first, second = dataset.queries
    assert first.image == "jpg/100000.jpg"
    assert first.image in dataset.images
    assert first.positives == {"jpg/100001.jpg", "jpg/100002.jpg"}
    assert first.junk == {"jpg/100000.jpg"}
    assert second.positives == {"jpg/100101.jpg"}
    ranking = ["jpg/100000.jpg", "jpg/100001.jpg", "jpg/100101.jpg", "jpg/100002.jpg"]
    result = evaluate_rankings(dataset, [ranking, ["jpg/100101.jpg"]])
    assert result.average_precisions == pytest.approx([19 / 24, 1])
    assert result.ns_score is None


def test_a_holidays_group_without_its_first_photo_is_not_asked(tmp_path):
    put(tmp_path, "100000.jpg", "100001.jpg", "100101.jpg", "IMG_1.jpg")
    dataset = load_dataset("holidays", tmp_path)
    assert [query.image for query in dataset.queries] == ["100000.jpg"]
    assert dataset.missing == ("100100.jpg",)
    assert "100101.jpg" in dataset.images
    assert dataset.surplus == ("IMG_1.jpg",)


def test_ukbench_asks_with_every_photo_for_the_four_of_its_thing(tmp_path):
    put(tmp_path, *(f"full/ukbench{n:05}.jpg" for n in range(8)))
    dataset = load_dataset("ukbench", tmp_path)
    assert len(dataset.queries) == 8
    assert dataset.queries[5].positives == {f"full/ukbench{n:05}.jpg" for n in range(4, 8)}
    assert dataset.queries[5].image in dataset.queries[5].positives
    perfect = [sorted(query.positives) for query in dataset.queries]
    assert evaluate_rankings(dataset, perfect).ns_score == 4
    assert evaluate_rankings(dataset, [list(dataset.images)] * 8).ns_score == 2


def test_a_ukbench_photo_that_is_missing_is_named(tmp_path):
    put(tmp_path, *(f"ukbench{n:05}.jpg" for n in (0, 1, 3)))
    dataset = load_dataset("ukbench", tmp_path)
    assert dataset.missing == ("ukbench00002.jpg",)
    assert "3 images, where ukbench has 10200" in dataset.check()


# JSON


def test_a_json_file_gives_a_dataset_whose_query_need_not_be_among_the_images(tmp_path):
    dataset = put_json(tmp_path, ground_truth())
    (query,) = dataset.queries
    assert dataset.images == ("jpg/a.jpg", "jpg/b.jpg", "jpg/c.jpg")
    assert query.image == "queries/q.jpg"
    assert query.box == Box(1, 2, 30, 40)
    assert query.positives == {"jpg/a.jpg"}
    assert query.junk == {"jpg/b.jpg"}
    assert query.group == "thing"
    assert dataset.path("queries/q.jpg") == tmp_path / "queries/q.jpg"
    assert dataset.check() == []
    assert dataset.name == tmp_path.name


def test_junk_that_is_not_searched_is_passed_over(tmp_path):
    query = ground_truth()["queries"][0] | {"junk": ["jpg/z.jpg"]}
    (only,) = put_json(tmp_path, ground_truth(queries=[query])).queries
    assert only.junk == frozenset()


def test_box_junk_group_and_note_may_be_left_out(tmp_path):
    truth = {"images": ["jpg/a.jpg"], "queries": [{"image": "jpg/a.jpg", "positives": []}]}
    (query,) = put_json(tmp_path, truth).queries
    assert (query.box, query.group, query.junk) == (None, None, frozenset())


def test_the_root_may_lie_elsewhere_and_a_folder_stands_for_its_gnd_json(tmp_path):
    put(tmp_path, "truth/gnd.json", content=json.dumps(ground_truth()).encode())
    put(tmp_path, "photos/jpg/a.jpg", "photos/queries/q.jpg", "photos/jpg/new.jpg", "flickr/1.jpg")
    dataset = load_dataset(tmp_path / "truth", tmp_path / "photos", tmp_path / "flickr")
    assert dataset.images == ("jpg/a.jpg", "distractor:1.jpg")
    assert dataset.missing == ("jpg/b.jpg", "jpg/c.jpg")
    assert dataset.surplus == ("jpg/new.jpg",)
    with pytest.raises(SettingsError, match=r"see Dataset\.missing"):
        dataset.path("jpg/b.jpg")


def test_a_name_too_long_for_the_disk_is_missing(tmp_path):
    long = "x" * 300 + ".jpg"
    dataset = put_json(tmp_path, ground_truth(images=["jpg/a.jpg", "jpg/b.jpg", long]))
    assert dataset.missing == (long,)


def test_one_spelling_of_a_path_is_kept(tmp_path):
    truth = ground_truth(images=["./jpg//a.jpg", "jpg/b.jpg"])
    assert put_json(tmp_path, truth).images == ("jpg/a.jpg", "jpg/b.jpg")
    with pytest.raises(SettingsError, match=r"'jpg/a\.jpg' twice"):
        put_json(tmp_path, ground_truth(images=["./jpg/a.jpg", "jpg/a.jpg"]))


@pytest.mark.parametrize(
    "name",
    [
        "../a.jpg",
        "jpg/../../a.jpg",
        "/etc/passwd",
        "C:/a.jpg",
        "jpg\\a.jpg",
        "a\0.jpg",
        "a\n",
        "",
        ".",
    ],
)
def test_a_name_that_leads_out_of_the_root_is_refused(tmp_path, name):
    query = ground_truth()["queries"][0]
    for truth in (
        ground_truth(images=["jpg/a.jpg", "jpg/b.jpg", name]),
        ground_truth(queries=[query, query | {"image": name}]),
        ground_truth(queries=[query, query | {"junk": [name]}]),
    ):
        with pytest.raises(SettingsError, match=r"leads out of the root|no name of a file"):
            put_json(tmp_path, truth)


QUERY = ground_truth()["queries"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbx": [1, 2, 3, 4]}, "unknown field 'bbx'"),
        ({"image": 3}, "a name is text"),
        ({"positives": "jpg/a.jpg"}, "must be a list"),
        ({"positives": ["jpg/a.jpg", "jpg/a.jpg"]}, "twice"),
        ({"positives": ["jpg/z.jpg"]}, r"positives has 'jpg/z\.jpg', which is not among images"),
        ({"junk": ["jpg/a.jpg"]}, "among positives and junk"),
        ({"junk": None}, "must be a list"),
        ({"bbox": [1, 2, 3]}, "four numbers"),
        ({"bbox": [1, 2, "3", 4]}, "four numbers"),
        ({"bbox": [True, 2, 3, 4]}, "four numbers"),
        ({"bbox": [30, 2, 3, 4]}, "is empty"),
        ({"bbox": "1,2,3,4"}, "bbox must be a list"),
        ({"group": 7}, "group must be text"),
    ],
)
def test_an_error_in_a_query_names_its_index(tmp_path, change, message):
    with pytest.raises(SettingsError, match=f"query 1.*{message}"):
        put_json(tmp_path, ground_truth(queries=[QUERY, QUERY | change]))


@pytest.mark.parametrize("lacking", ["image", "positives"])
def test_a_query_that_lacks_a_field_is_named_by_its_index(tmp_path, lacking):
    query = {key: value for key, value in QUERY.items() if key != lacking}
    with pytest.raises(SettingsError, match=f"query 1 lacks the field '{lacking}'"):
        put_json(tmp_path, ground_truth(queries=[QUERY, query]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "no valid JSON"),
        (b"\xff\xfe", "no valid JSON"),
        (b"[" * 100_000, "no valid JSON"),
        (b'{"images": [NaN], "queries": []}', "NaN is no number"),
        (b'{"images": [], "images": [], "queries": []}', "stands twice"),
        (b"[]", "must be an object"),
        (b'{"images": [], "querys": []}', "unknown field 'querys'"),
        (b'{"images": []}', "lacks the field 'queries'"),
        (b'{"images": [], "queries": {}}', "queries must be a list"),
        (b'{"images": [], "queries": [3]}', "query 0 must be an object"),
        (b'{"images": ["a.jpg"], "queries": [], "note": 1}', "note must be text"),
        (b'{"images": ["a.jpg"], "queries": []}', "not one image is there"),
    ],
)
def test_a_malformed_file_is_explained(tmp_path, content, message):
    put(tmp_path, "gnd.json", content=content)
    with pytest.raises(SettingsError, match=message):
        load_dataset(tmp_path)


def test_an_unknown_name_lists_the_known_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"'oxford6k'.*oxford5k, paris6k"):
        load_dataset("oxford6k")
    with pytest.raises(SettingsError, match="needs root"):
        load_dataset("oxford5k")
    with pytest.raises(SettingsError, match="needs distractors"):
        load_dataset("paris106k", tmp_path)
