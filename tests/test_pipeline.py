"""The library facade: ten lines from arrays to labels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rfss_core
from rfss_core import FewShotSegmenter, SupportSet
from rfss_core.errors import GeometryError, PixelError, SettingsError, SupportError
from rfss_core.pipeline import Result

ROOT = Path(__file__).resolve().parents[1]


def disc(centre: tuple[int, int], radius: int, side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:side, :side]
    mask = ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2).astype(np.uint8)
    noise = np.random.default_rng(sum(centre)).random((side, side), dtype=np.float32)
    return (0.2 + 0.5 * mask + 0.1 * noise).astype(np.float32), mask


PAIRS = [disc((20 + 4 * i, 32), 10 + i) for i in range(6)]
PATIENTS = ["a", "a", "b", "b", "c", "c"]


def support() -> SupportSet:
    return SupportSet.from_arrays([p[0] for p in PAIRS], [p[1] for p in PAIRS], PATIENTS, {1: "disc"})


@pytest.fixture(scope="module", params=["sam2-memory", "label-fusion"])
def segmenter(request: pytest.FixtureRequest) -> FewShotSegmenter:
    settings = {"segmenter": request.param, "device": "cpu"}
    return FewShotSegmenter.from_preset("tiny", segmentation=settings).fit(support())


def check(result: Result, shape: tuple[int, int], k: int) -> None:
    assert result.labels.shape == shape
    assert result.labels.dtype == np.uint8
    assert set(np.unique(result.labels)) <= {0, 1}
    assert len(result.support_ids) == len(result.neighbours) == k
    assert result.object_score.shape == result.predicted_iou.shape == (1,)


def test_one_slice_is_segmented_with_its_provenance(segmenter: FewShotSegmenter) -> None:
    result = segmenter.segment(PAIRS[2][0], k=3)
    check(result, (64, 64), 3)
    assert result.support_ids[0] == "slice-0002"
    assert result.neighbours.distances[0] == pytest.approx(0, abs=1e-9)
    assert result.support_ids == [segmenter.support.ids[row] for row in result.neighbours.indices]


def test_the_own_patient_does_not_serve(segmenter: FewShotSegmenter) -> None:
    result = segmenter.segment(PAIRS[2][0], patient="b")
    check(result, (64, 64), 4)
    assert not {"slice-0002", "slice-0003"} & set(result.support_ids)


def test_many_equals_one_by_one_for_slices_of_any_shape(segmenter: FewShotSegmenter) -> None:
    images = [PAIRS[0][0], disc((30, 20), 12, 80)[0][:50], np.repeat(PAIRS[4][0][..., None], 3, axis=2)]
    patients = ["a", None, "x"]
    many = segmenter.segment_many(images, k=2, patients=patients)
    for result, image, patient in zip(many, images, patients, strict=True):
        check(result, image.shape[:2], 2)
        alone = segmenter.segment(image, k=2, patient=patient)
        assert alone.support_ids == result.support_ids
        assert np.mean(alone.labels != result.labels) < 0.002
    assert segmenter.segment_many([]) == []


def test_volumes_reach_the_segmenter() -> None:
    segmenter = FewShotSegmenter.from_preset("tiny", segmentation={"volume_memories": 2, "device": "cpu"}, k=2)
    segmenter.fit(support())
    images = [pair[0] for pair in PAIRS[:3]]
    alone = segmenter.segment_many(images)
    together = segmenter.segment_many(images, volumes=[3])
    assert all((a.object_score != b.object_score).all() for a, b in zip(alone, together, strict=True))
    with pytest.raises(SettingsError, match="do not make up 3 queries"):
        segmenter.segment_many(images, volumes=[2])


def test_label_fusion_copies_an_identical_support() -> None:
    segmenter = FewShotSegmenter.from_preset("tiny", segmentation={"segmenter": "label-fusion"}, k=1).fit(support())
    for image, mask in PAIRS:
        assert np.array_equal(segmenter.segment(image).labels, mask)


def test_random_retrieval_does_not_depend_on_the_list() -> None:
    settings = {"strategy": "random", "support_slices": 5}
    segmenter = FewShotSegmenter.from_preset(
        "tiny", retrieval=settings, segmentation={"segmenter": "label-fusion"}, seed=7
    ).fit(support())
    assert len(segmenter.support) == 5
    images = [pair[0] for pair in PAIRS]
    forward = segmenter.segment_many(images, k=2)
    backward = segmenter.segment_many(images[::-1], k=2)[::-1]
    assert [r.support_ids for r in forward] == [r.support_ids for r in backward]
    assert len({tuple(r.support_ids) for r in forward}) > 1


def test_bad_use_is_typed(segmenter: FewShotSegmenter) -> None:
    with pytest.raises(SupportError, match="fit"):
        FewShotSegmenter.from_preset("tiny", segmentation={"segmenter": "label-fusion"}).segment(PAIRS[0][0])
    with pytest.raises(GeometryError, match="image 0"):
        segmenter.segment(np.zeros((3, 64, 64)))
    with pytest.raises(PixelError, match="image 1"):
        segmenter.segment_many([PAIRS[0][0], np.full((64, 64), np.nan)])
    with pytest.raises(SettingsError, match="k must be"):
        segmenter.segment(PAIRS[0][0], k=0)
    with pytest.raises(SettingsError, match="patients"):
        segmenter.segment_many([PAIRS[0][0]], patients=["a", "b"])
    with pytest.raises(SettingsError, match="preset"):
        FewShotSegmenter.from_preset("huge")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="colour"):
        FewShotSegmenter.from_preset("tiny", colour=3)
    with pytest.raises(SupportError, match="7 components"):
        segmenter.fit(support().with_embeddings(np.ones((6, 7))))


def test_importing_the_library_is_free() -> None:
    code = "import sys, rfss_core; assert not {'torch', 'faiss', 'transformers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert {"FewShotSegmenter", "SupportSet"} <= set(dir(rfss_core))
    with pytest.raises(AttributeError, match="nothing"):
        _ = rfss_core.nothing


def test_the_page_runs() -> None:
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    snippet = page.split("```python # snippet: library\n", 1)[1].split("```", 1)[0]
    scope: dict[str, object] = {}
    exec(snippet, scope)
    result = scope["result"]
    assert isinstance(result, Result)
    assert "slice-0000" not in result.support_ids
    check(result, (96, 96), 3)
