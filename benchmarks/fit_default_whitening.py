"""Fit the whitening that ships with the package, on photos that belong to no benchmark.

python benchmarks/fit_default_whitening.py PHOTOS [--backbone efficientnet_lite0]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cwf_milvus
from cwf_milvus.encode.encoder import Encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", help="a folder of unlabelled photos")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    arguments = parser.parse_args()
    encoder = Encoder(arguments.backbone)
    n = sum(1 for file in Path(arguments.photos).iterdir() if file.is_file())
    encoder.fit(
        arguments.photos,
        origin=f"shipped with cwf-milvus, fitted on {n} unrelated photos",
        progress=lambda done, total: print(f"\r{done}/{total}", end="", flush=True),
    )
    assert encoder.whitenings is not None
    target = Path(cwf_milvus.__file__).parent / "data" / f"{arguments.backbone}.safetensors"
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(encoder.whitenings.to_bytes())
    print(f"\n{target}: {target.stat().st_size} bytes, {encoder.dim} dimensions")


if __name__ == "__main__":
    main()
