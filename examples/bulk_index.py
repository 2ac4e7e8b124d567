"""Index many photos with their metadata: run it again after any interruption, and it goes on.

python examples/bulk_index.py PHOTOS METADATA.csv [URI]

METADATA.csv has a column file_name and your own, such as `year`. URI is a path that ends in .db
(Milvus Lite), or http://host:19530 with the token in the environment variable MILVUS_TOKEN.
"""

import os
import sys

from cwf_milvus import Encoder, InstanceCollection


def main(photos: str, metadata: str, uri: str = "bulk.db") -> int:
    """Index, say what failed, check that all is there; returns the exit status."""
    with InstanceCollection.create(
        uri, "photos", Encoder(), token=os.environ.get("MILVUS_TOKEN"), exist_ok=True
    ) as collection:
        report = collection.add(
            photos,
            metadata=metadata,
            prune=True,  # rows whose files are gone
            report_file="report.jsonl",  # what became of each photo, a line each
        )
        print(report)
        for uri_of_photo, reason in report.failed:
            print(f"failed: {uri_of_photo}: {reason}", file=sys.stderr)
        outcome = collection.verify()
    print(outcome)
    return 0 if outcome.ok and not report.failed else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
