"""Keypoints out of pixels: RootSIFT by OpenCV."""

from __future__ import annotations

import math
from typing import Final

import cv2
import numpy as np

from cwf_milvus.method.keypoint_codes import SIFT_DIM, Keypoints, compact_descriptors

VIEW: Final = 512
"""Longest side, in pixels, that the photo is resized to, up or down."""

CONTRAST: Final = 0.02
"""OpenCV's contrast threshold: half of its default, for photos of low contrast."""


def extract_keypoints(pixels: np.ndarray, width: int, height: int, limit: int) -> Keypoints:
    """Return the strongest keypoints of a photo, at most `limit`, by SIFT (Lowe, IJCV 2004).

    The same pixels give the same keypoints in any thread. OpenCV works without the interpreter's
    lock, so that threads run beside each other.

    Args:
        pixels: (h, w, 3) uint8, RGB, perhaps a reduced decode.
        width: of the upright original, in pixels; the positions are in these.
        height: of the upright original, in pixels.
        limit: how many are kept, at least 1.
    """
    shown_height, shown_width = pixels.shape[:2]
    scale = VIEW / max(shown_width, shown_height)
    size = max(1, round(shown_width * scale)), max(1, round(shown_height * scale))
    grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    shrinks = scale < 1
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    sift = cv2.SIFT.create(limit, contrastThreshold=CONTRAST, enable_precise_upscale=True)
    points, descriptors = sift.detectAndCompute(grey, None)
    if not points:
        descriptors = np.zeros((0, SIFT_DIM), np.float32)
    rows = [(*point.pt, point.size, point.angle, point.response) for point in points]
    found = np.array(rows, np.float32).reshape(-1, 5)
    # OpenCV's threads hand the points over in any order, and a few more where some are as strong.
    best = np.lexsort((*found[:, :4].T, -found[:, 4]))[:limit]
    x, y, diameters, degrees, _ = found[best].T
    stretch = width / size[0], height / size[1]
    return Keypoints(
        positions=((np.stack([x, y], axis=1) + 0.5) * stretch).astype(np.float32),
        scales=diameters * np.float32(max(width, height) / max(size)),
        angles=degrees * np.float32(math.pi / 180),
        descriptors=compact_descriptors(descriptors[best]),
        width=width,
        height=height,
    )
