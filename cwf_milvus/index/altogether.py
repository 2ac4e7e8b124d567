"""What a collection does with all its photos at once: a graph, augmented descriptors, keypoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cwf_milvus.store.augmentation import Augmentation, Augmented, augment
from cwf_milvus.store.moves import MovableRows
from cwf_milvus.store.verification import Verification, verify

if TYPE_CHECKING:  # scipy's sparse arrays take a while, and much is done without them
    from cwf_milvus.index.alike import Duplicates, Neighbour
    from cwf_milvus.index.graph import GraphReport
    from cwf_milvus.index.report import Report


class PhotosAltogether(MovableRows):
    """The rows of a collection, and what is made of all of them together."""

    def build_graph(
        self, *, neighbours: int = 10, verify: bool = True, progress: bool = True
    ) -> GraphReport:
        """Build the graph of the photos, for ``expand="graph"``, or bring it up to date.

        Each photo is compared with the 50 whose descriptors are nearest, by squared late
        interaction, and with the 20 most alike of these by keypoints, where they are stored. A run
        that was killed goes on where it stopped. Run again after photos were added, changed or
        removed, it compares those that are new and the neighbours of those that are gone, and
        leaves the rest.

        Args:
            neighbours: k, edges that start at a photo, from 1 to 50; with another k than before,
                all is built anew.
            verify: count the keypoints that agree; otherwise, or where none are stored, the
                vectors alone tell.
            progress: show a progress bar on standard error.

        Raises:
            SettingsError: a number out of range.
            StoreError: Milvus failed, or is a server before 2.4, which has no sparse vectors.
            CollectionError: another program builds it, or stored vectors are damaged.
        """
        from cwf_milvus.index.graph import build_graph  # scipy's sparse arrays take a while

        return build_graph(self, neighbours=neighbours, verify=verify, progress=progress)

    def neighbours(self, uri: str, limit: int = 10) -> list[Neighbour]:
        """Return the photos that resemble a stored one, by the graph, the most alike first.

        Args:
            uri: of the photo.
            limit: how many at most; the graph has about 15 of a photo.

        Raises:
            CollectionError: there is no graph, or the photo is not in it.
        """
        from cwf_milvus.index.alike import neighbours  # scipy's sparse arrays take a while

        return neighbours(self, uri, limit)

    def duplicates(self, *, inliers: int = 25, cover: float = 0.5) -> list[Duplicates]:
        """Return groups of photos that show one scene, the largest group first.

        Photos with the same bytes are always found, photos of the same scene where a graph was
        built with keypoints.

        Args:
            inliers: keypoints of two photos of one scene that agree, at least.
            cover: share of each of them that shows the same, at least, from 0 to 1.

        Raises:
            SettingsError: a number out of range.
            StoreError: Milvus failed.
        """
        from cwf_milvus.index.alike import duplicates  # scipy's sparse arrays take a while

        return duplicates(self, inliers=inliers, cover=cover)

    def drop_graph(self) -> bool:
        """Drop the graph; returns whether there was one."""
        return self.graph.drop()

    def augment(self, *, neighbours: int = 10, alpha: float = 3.0) -> Augmentation:
        """Augment every descriptor by its neighbours.

        ``l2(d + sum max(0, cos_i)^alpha d_i)`` over the photo's `neighbours` nearest others. Run
        again after photos were added, changed or removed, it does new and changed photos and those
        near to them (the 100 nearest) whose neighbours they become, and leaves the rest; with
        another `neighbours` or `alpha` it does all anew. What a removed photo gave to others stays
        in them.

        Args:
            neighbours: how many, at least 1.
            alpha: 0 weights all alike, a large one only the nearest.

        Raises:
            SettingsError: a number out of range.
            StoreError: Milvus failed; run again to go on.
        """
        return augment(self, neighbours=neighbours, alpha=alpha)

    def undo_augmentation(self) -> bool:
        """Drop the augmented descriptors; returns whether there were any."""
        return Augmented(self).drop()

    def upgrade(self, *, progress: bool = True) -> Report:
        """Add keypoints to stored photos, of a collection made without; see `add_keypoints`."""
        from cwf_milvus.index.upgrade import add_keypoints  # OpenCV takes a while

        return add_keypoints(self, progress=progress)

    def verify(
        self, *, accept: bool = False, quick: bool = False, files: bool = False
    ) -> Verification:
        """Check that every row is there and whole, and the encoder and the index too.

        Rows that were stored just before a run was interrupted get the receipts that they lack.

        Args:
            accept: take the rows that there are as the right ones from now on, once lost photos
                have been added again, or given up.
            quick: read about 1,000 rows whole, spread over all, and no side collection but the
                receipts and the encoder.
            files: read the photos too, and name the rows whose local file is gone or changed.

        Raises:
            StoreError: Milvus failed.
        """
        with self._lock:
            self.follow()
            outcome = verify(self, accept=accept, quick=quick)
        if files:
            from cwf_milvus.index.originals import look_at_originals  # what decodes takes a while

            outcome.originals = look_at_originals(self)
        return outcome
