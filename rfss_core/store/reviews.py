"""Reviews of a workspace: corrected label maps with where they come from; the source's label folder is never touched.

``reviews/cases/<case_id>.json`` is the record of a reviewed case, ``reviews/labels/<case_id>/<sha256>.<suffix>`` the
label map that it names. Earlier label maps of the same case stay, and their records are the newer one's history.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rfss_core.digest import digest_bytes
from rfss_core.errors import CorruptStoreError, StaleReviewError
from rfss_core.imaging import CaseSource, source_digest
from rfss_core.imaging.case import REVIEWED_SOURCE
from rfss_core.store.files import Files, safe_name

FOLDER = "reviews"


@dataclass(frozen=True)
class Review:
    """One case that somebody looked at."""

    case_id: str
    name: str
    """The source's relative path without its extension."""
    reviewer: str
    reviewed_at: str
    """When the label map was last saved, ISO 8601, UTC."""
    imported_at: str
    """When it came into the workspace, ISO 8601, UTC."""
    changed: bool
    """Whether the reviewer changed any voxel of the pseudo-label."""
    image_digest: str
    """Digest of the image's files, by :func:`rfss_core.imaging.source_digest` without a label."""
    pseudo_label_sha256: str
    """Of the pseudo-label's file that the review began from."""
    dataset_digest: str
    """Of the data set which that pseudo-label belongs to."""
    fingerprint: str
    """Of the run that made it."""
    label_sha256: str = ""
    """Of the stored label map's file."""
    suffix: str = ".nii.gz"
    dice: Mapping[str, float] = field(default_factory=dict)
    """Dice of the pseudo-label against the corrected label map, by class name."""
    note: str = ""
    history: tuple[Mapping[str, Any], ...] = ()
    """Earlier reviews of the case, oldest first."""

    @property
    def label_path(self) -> str:
        """Where the label map lies, below the workspace."""
        return f"{FOLDER}/labels/{self.case_id}/{self.label_sha256}{self.suffix}"


class Reviews:
    """The reviewed cases of a workspace.

    Args:
        files: the workspace's files.
    """

    def __init__(self, files: Files) -> None:
        self._files = files

    def all(self) -> dict[str, Review]:
        """Return the latest review of each case, by case id.

        Raises:
            CorruptStoreError: a record is damaged.
        """
        folder = f"{FOLDER}/cases"
        names = [name for name in self._files.names(folder) if name.endswith(".json")]
        return {name.removesuffix(".json"): self._read(f"{folder}/{name}") for name in names}

    def add(self, review: Review, label: bytes) -> Review:
        """Keep a review with its label map, the record last.

        Args:
            review: what is known of it; an earlier review of the case becomes its history.
            label: the label map's file on the source's own grid.

        Returns:
            The review as it was kept. The same label map by the same reviewer twice is one review.

        Raises:
            StoreError: the workspace cannot be written.
        """
        path = f"{FOLDER}/cases/{safe_name(review.case_id, 'case id')}.json"
        complete = replace(review, label_sha256=digest_bytes(label))
        if self._files.exists(path):
            known = self._read(path)
            if (known.label_sha256, known.reviewer) == (complete.label_sha256, complete.reviewer):
                return known
            earlier = asdict(known)
            history = earlier.pop("history")
            complete = replace(complete, history=(*history, earlier))
        self._files.write_bytes(complete.label_path, label)
        content = json.dumps(asdict(complete), indent=1, sort_keys=True, ensure_ascii=False)
        self._files.write_bytes(path, content.encode() + b"\n")
        return complete

    @contextmanager
    def attached(self, source: CaseSource, review: Review) -> Iterator[CaseSource]:
        """Yield a case with its reviewed label map as its label, as a local file.

        Raises:
            StaleReviewError: the image is not the one that was reviewed.
            CorruptStoreError: the label map's file is damaged or missing.
        """
        if source_digest(source) != review.image_digest:
            raise StaleReviewError(
                f"{source.name}: the image has changed since {review.reviewer} reviewed it; the reviewed label map is "
                "not used, and the case gets a new pseudo-label: export and review it again"
            )
        with tempfile.TemporaryDirectory(prefix="rfss-review-") as folder:
            local = self._files.local_path(review.label_path)
            if local is None:
                local = Path(folder) / f"label{review.suffix}"
                self._files.fetch(review.label_path, local)
            if not local.is_file() or digest_bytes(local.read_bytes()) != review.label_sha256:
                raise CorruptStoreError(
                    f"'{review.label_path}' in '{self._files.url}' is damaged or missing; import the review of "
                    f"'{review.name}' again"
                )
            yield replace(source, label=local, label_source=REVIEWED_SOURCE)

    def _read(self, path: str) -> Review:
        try:
            content = json.loads(self._files.read_bytes(path))
            return Review(**{**content, "history": tuple(content["history"])})
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptStoreError(
                f"'{path}' in '{self._files.url}' is damaged; import the review again, or remove the file"
            ) from error
