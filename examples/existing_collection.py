"""Add instance re-ranking to a collection that another program made with plain pymilvus.

    python examples/existing_collection.py

The other program knows nothing of this project: it stores one vector a photo, here a colour
thumbnail. Its collection is not changed. The query is a part of one photo; the photos searched
are those inside scikit-image and scikit-learn, with a few views made of them.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from pymilvus import MilvusClient

from cwf_milvus import Box, Encoder
from cwf_milvus.demo import write_photos
from cwf_milvus.rerank import Regions, Reranker

CAT = Box(90, 5, 355, 275)  # in chelsea.png


def their_vector(image: Image.Image) -> list[float]:
    """What the other program stores: the colours of a 6 x 6 thumbnail."""
    pixels = np.asarray(image.convert("RGB").resize((6, 6)), np.float32).ravel() - 128
    return (pixels / np.linalg.norm(pixels)).tolist()


def their_program(client: MilvusClient, photos: list[Path]) -> None:
    """Make a collection as anyone may have one: no local vectors, no encoder."""
    client.create_collection("theirs", dimension=108, metric_type="COSINE")
    rows = [
        {"id": i, "vector": their_vector(Image.open(photo)), "path": str(photo)}
        for i, photo in enumerate(photos)
    ]
    client.insert("theirs", rows)


def main() -> None:
    """Search as they do, then re-rank."""
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder, "photos"))
        photos = sorted(Path(folder, "photos").iterdir())
        client = MilvusClient(str(Path(folder, "theirs.db")))
        their_program(client, photos)
        query = str(Path(folder, "photos", "chelsea.png"))
        vector = their_vector(Image.open(query).crop(CAT))
        answer = client.search("theirs", [vector], limit=25, output_fields=["path"])
        show("their search", [hit["entity"]["path"] for hit in answer[0]])

        # The five lines: an encoder looks at the 25 hits, and the regions of the query find
        # theirs. To save its time store its region vectors with each row, in a field of floats
        # or packed, and name that field: Reranker([Regions()], regions="region_vectors").
        encoder = Encoder()
        regions = cache(lambda path: encoder.encode([path])[0].region_vectors)
        rerank = Reranker([Regions()], regions=lambda hit: regions(hit["path"]))
        hits = rerank(answer[0], encoder.encode_query(query, CAT))
        show("re-ranked", [hit.metadata["path"] for hit in hits])
        client.close()


def show(title: str, paths: list[str]) -> None:
    """Print the first photos, and where those of the cat are."""
    print(f"\n{title}")
    for rank, path in enumerate(paths[:8], start=1):
        print(f"  {rank}. {Path(path).name}")
    ranks = [rank for rank, path in enumerate(paths, start=1) if "chelsea" in path]
    print(f"  the cat is at {ranks} of {len(paths)}")


if __name__ == "__main__":
    main()
