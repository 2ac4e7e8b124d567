"""Encode photos on a Ray cluster and store them in Milvus, from image files or webdataset shards.

python examples/ray_index.py files PHOTOS [URI]
python examples/ray_index.py images PHOTOS [URI]
python examples/ray_index.py webdataset SHARDS.tar [URI]

PHOTOS is a folder or url; SHARDS.tar a tar file of photos, or a folder of such. URI is
http://host:19530, or a path that ends in .db, with one writer. Run it again after a kill: rows have
keys that follow from the photos' names, and are stored in place of themselves.

`files` and `webdataset` hand the bytes over: photos are turned upright, and one that is none is
named at the end. `images` is `ray.data.read_images`, for pipelines that have pixels: it does
not turn photos by their EXIF, and a file that is no photo ends the run.

Run on a local Ray of two CPUs, started by this program, with Milvus Lite: `images` on a folder of
20 photos, `webdataset` on a tar file of 10 photos and a file that is none, `files` on a folder of 3
and one that is none. All photos were stored, and what was no photo was named.
"""

import sys

import ray

from cwf_milvus import Encoder, InstanceCollection
from cwf_milvus.ray import EncodePhotos, MilvusDatasink

ENDINGS = ["jpg", "jpeg", "png", "webp"]


def from_webdataset(sample: dict) -> dict:
    """Return name and bytes of a sample of a webdataset: its photo is the column of its ending."""
    ending = next(ending for ending in ENDINGS if sample.get(ending) is not None)
    return {"path": f"{sample['__key__']}.{ending}", "image": sample[ending]}


def main(kind: str, photos: str, uri: str = "ray.db") -> int:
    """Index; returns the exit status."""
    encoder = Encoder()
    InstanceCollection.create(uri, "photos", encoder, exist_ok=True).close()
    if kind == "images":
        rows = ray.data.read_images(photos, include_paths=True)
    elif kind == "files":
        found = ray.data.read_binary_files(photos, include_paths=True, file_extensions=ENDINGS)
        rows = found.rename_columns({"bytes": "image"})
    else:
        rows = ray.data.read_webdataset(photos, decoder=None).map(from_webdataset)
    encoded = rows.map_batches(
        EncodePhotos,
        fn_constructor_kwargs={"encoder": encoder.state(), "uri": "path", "photo": "image"},
        batch_size=16,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=8),
    )
    sink = MilvusDatasink(uri, "photos")
    encoded.write_datasink(sink, concurrency=None if uri.startswith("http") else 1)
    print(f"{sink.report.added} stored, {len(sink.report.failed)} failed")
    for name, reason in sink.report.failed:
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if sink.report.failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
