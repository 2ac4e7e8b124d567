"""Index a folder of photos, and find one thing in them by a box on one photo.

python examples/quickstart.py [PHOTOS QUERY X1,Y1,X2,Y2]

Without arguments: the demonstration's photos (pip install 'cwf-milvus[demo]'), and a cup.
"""

import sys
from pathlib import Path

from cwf_milvus import Encoder, InstanceCollection


def main(photos: str, query: str, box: str) -> None:
    """Index, search, show."""
    with InstanceCollection.create("quickstart.db", "photos", Encoder(), exist_ok=True) as found:
        print(found.add(photos))
        hits = found.search(query, box=box, limit=5, rerank="regions")
    print(hits)
    print(f"with pictures: {hits.save('quickstart.html')}")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        main(*sys.argv[1:])
    else:
        from cwf_milvus.demo import write_photos

        folder = Path("quickstart-photos")
        write_photos(folder)
        main(str(folder), str(folder / "coffee.png"), "80,14,478,390")
