from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rfss_core.errors import CorruptStoreError, StaleReviewError
from rfss_core.imaging import CaseSource, source_digest
from rfss_core.store import Files, Review, Reviews


@pytest.fixture
def source(tmp_path: Path) -> CaseSource:
    path = tmp_path / "image.png"
    path.write_bytes(b"pixels")
    return CaseSource("c1", "c1", "p1", "unknown", "raster", path, None)


def review_of(source: CaseSource, **changes: object) -> Review:
    plain = Review(
        "c1", "c1", "Dr. A", "2026-01-02T03:04:05+00:00", "2026-01-03T00:00:00+00:00", True, source_digest(source),
        "p" * 64, "d" * 64, "f" * 64, suffix=".png", dice={"gland": 0.5},
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


def files_at(place: str, tmp_path: Path) -> Files:
    return Files(tmp_path / "work") if place == "local" else Files(f"memory://reviews-{tmp_path.name}")


@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_review_is_kept_with_its_history_and_attached(place: str, tmp_path: Path, source: CaseSource) -> None:
    reviews = Reviews(files_at(place, tmp_path))
    assert reviews.all() == {}
    first = reviews.add(review_of(source), b"mask one")
    assert reviews.add(review_of(source, imported_at="later"), b"mask one") == first
    second = reviews.add(review_of(source, reviewer="B"), b"mask two")
    assert reviews.all() == {"c1": second}
    assert [earlier["reviewer"] for earlier in second.history] == ["Dr. A"]
    with reviews.attached(source, second) as labelled:
        assert labelled.label is not None
        assert labelled.label.read_bytes() == b"mask two"
        assert (labelled.label_source, labelled.image) == ("reviewed", source.image)


def test_a_changed_image_and_a_damaged_mask_are_noticed(tmp_path: Path, source: CaseSource) -> None:
    reviews = Reviews(Files(tmp_path / "work"))
    kept = reviews.add(review_of(source), b"mask")
    mask = tmp_path / "work" / kept.label_path
    mask.write_bytes(b"flip")
    with pytest.raises(CorruptStoreError, match="damaged"), reviews.attached(source, kept):
        pass
    mask.unlink()
    with pytest.raises(CorruptStoreError, match="missing"), reviews.attached(source, kept):
        pass
    Path(str(source.image)).write_bytes(b"other pixels")
    with pytest.raises(StaleReviewError, match=r"Dr\. A"), reviews.attached(source, kept):
        pass
    (tmp_path / "work/reviews/cases/c1.json").write_text("{}")
    with pytest.raises(CorruptStoreError, match="cases/c1"):
        reviews.all()
