"""The support set: what it promises, and what it refuses."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfss_core.errors import SupportError
from rfss_core.retrieval import SupportSet

IMAGES = [np.full((6, 8), 0.1 * i, dtype=np.float32) for i in range(5)]
MASKS = [np.full((6, 8), i % 3, dtype=np.uint8) for i in range(5)]
PATIENTS = ["a", "a", "b", "b", "c"]


def build(**changes: object) -> SupportSet:
    arguments: dict[str, object] = {"images": IMAGES, "masks": MASKS, "patients": PATIENTS}
    return SupportSet.from_arrays(**(arguments | changes))  # type: ignore[arg-type]


def test_it_returns_what_it_was_given() -> None:
    support = build(classes={2: "two", 1: "one"}, ids=list("vwxyz"))
    assert len(support) == 5
    assert support.ids == list("vwxyz")
    assert support.patients == PATIENTS
    assert list(support.classes.items()) == [(1, "one"), (2, "two")]
    assert support.class_values == (1, 2)
    assert support.embeddings is None
    for i in range(5):
        assert np.array_equal(support.image(i), IMAGES[i])
        assert np.array_equal(support.mask(i), MASKS[i])
    assert support.class_presence.tolist() == [
        [False, False],
        [True, False],
        [False, True],
        [False, False],
        [True, False],
    ]


def test_defaults_name_classes_ids_and_patients() -> None:
    support = build(patients=None)
    assert support.classes == {1: "class 1", 2: "class 2"}
    assert support.patients == support.ids == [f"slice-{i:04d}" for i in range(5)]


def test_stacked_eight_bit_and_bool_arrays_are_taken() -> None:
    images = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    support = SupportSet.from_arrays(images, images > 10)
    assert support.image(1)[0, 0] == pytest.approx(16 / 255)
    assert support.mask(1).dtype == np.uint8
    assert support.classes == {1: "class 1"}


@pytest.mark.parametrize("lazily", [False, True])
def test_writing_into_what_it_hands_out_changes_nothing(lazily: bool) -> None:
    support = lazy()[0] if lazily else build()
    for _ in range(2):
        support.image(0)[:] = 0.9
        support.mask(0)[:] = 2
    assert np.array_equal(support.image(0), IMAGES[0])
    assert np.array_equal(support.mask(0), MASKS[0])
    assert support.digest == build().digest


def test_it_does_not_follow_changes_of_the_arrays_it_was_built_from() -> None:
    images, masks = [image.copy() for image in IMAGES], [mask.copy() for mask in MASKS]
    support = build(images=images, masks=masks)
    for array in (*images, *masks):
        array[:] = 1
    assert support.digest == build().digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [], "masks": [], "patients": None}, "empty"),
        ({"images": IMAGES[:4]}, "4 images but 5 masks"),
        ({"patients": ["a"]}, "5 support slices but 1 patients"),
        ({"ids": ["x"] * 5}, "'x' appears more than once"),
        ({"ids": ["x"]}, "5 images but 1 ids"),
        (
            {"masks": [*MASKS[:4], np.zeros((8, 6), dtype=np.uint8)]},
            r"'slice-0004' is \(6, 8\) but its mask is \(8, 6\)",
        ),
        ({"masks": [mask.astype(np.float32) for mask in MASKS]}, "'slice-0000' has dtype float32"),
        ({"masks": [mask.astype(np.int64) - 1 for mask in MASKS]}, "values from -1"),
        ({"masks": [mask.astype(np.int64) + 300 for mask in MASKS]}, "to 300"),
        ({"masks": [np.zeros((6, 8), dtype=np.uint8)] * 5}, "labels anything"),
        ({"masks": [np.zeros((1, 6, 8), dtype=np.uint8)] * 5}, r"expected \[H, W\]"),
        ({"classes": {1: "one"}}, r"\[2\].*does not name"),
        ({"classes": {1: "one", 2: "two", 300: "x"}}, "1 to 255"),
        ({"images": [*IMAGES[:4], np.full((6, 8), np.nan)]}, "'slice-0004' holds NaN"),
        ({"images": [*IMAGES[:4], np.full((6, 8), 700.0)]}, "'slice-0004' has pixels from 700"),
        ({"images": [*IMAGES[:4], np.zeros((6, 8, 2))]}, "'slice-0004' has shape"),
    ],
)
def test_bad_input_names_the_slice_and_the_value(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SupportError, match=message):
        build(**changes)


class Reader:
    """Reads that are counted."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.arrays = arrays
        self.reads: Counter[int] = Counter()

    def __call__(self, i: int) -> np.ndarray:
        self.reads[i] += 1
        return self.arrays[i]


def lazy(cache_bytes: int = 2**20, **known: object) -> tuple[SupportSet, Reader, Reader]:
    images, masks = Reader(IMAGES), Reader(MASKS)
    names = [f"slice-{i:04d}" for i in range(5)]
    classes = {1: "class 1", 2: "class 2"}
    return SupportSet(names, PATIENTS, classes, images, masks, cache_bytes=cache_bytes, **known), images, masks  # type: ignore[arg-type]


def test_a_lazy_set_equals_one_of_arrays_and_reads_once() -> None:
    support, images, masks = lazy()
    assert not images.reads
    assert not masks.reads
    assert support.digest == build().digest
    assert np.array_equal(support.class_presence, build().class_presence)
    assert all(np.array_equal(support.image(i), IMAGES[i]) for i in range(5))
    assert set(images.reads.values()) == set(masks.reads.values()) == {1}


def test_what_is_known_is_not_read() -> None:
    full = build()
    support, images, masks = lazy(
        class_presence=full.class_presence, item_digests=[full.item_digest(i) for i in range(5)]
    )
    assert support.digest == full.digest
    assert support.class_presence.any()
    assert not images.reads
    assert not masks.reads


def test_the_cache_keeps_its_bound_and_the_most_recent() -> None:
    size = IMAGES[0].nbytes
    support, images, _ = lazy(cache_bytes=2 * size)
    for i in (0, 1, 0, 2, 0, 1):
        assert np.array_equal(support.image(i), IMAGES[i])
        assert support._images.nbytes <= 2 * size
    assert images.reads == {0: 1, 1: 2, 2: 1}


def test_a_subset_shares_readers_and_keeps_all_that_is_known() -> None:
    support, images, _ = lazy()
    support = support.with_embeddings(np.eye(5, 7))
    digest = support.item_digest(3)
    part = support.subset([3, 1]).subset([0])
    assert part.ids == ["slice-0003"]
    assert part.patients == ["b"]
    assert np.array_equal(part.image(0), IMAGES[3])
    assert np.array_equal(part.mask(0), MASKS[3])
    assert part.item_digest(0) == digest
    assert part.embeddings is not None
    assert np.array_equal(part.embeddings, np.eye(5, 7, dtype=np.float32)[[3]])
    assert part.class_presence.tolist() == [[False, False]]
    assert images.reads[3] == 1


def test_the_digest_follows_content_names_and_order() -> None:
    changed = [image.copy() for image in IMAGES]
    changed[2][0, 0] += 0.01
    sets = [
        build(),
        build(images=changed),
        build(ids=list("abcde")),
        build(patients=list("abcde")),
        build(classes={1: "x", 2: "y"}),
        build().subset([1, 0, 2, 3, 4]),
        build().subset([0, 1, 2, 3]),
    ]
    assert len({support.digest for support in sets}) == len(sets)
    assert build().digest == build().digest


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (np.ones((4, 3)), r"\(4, 3\); expected \[5, D\]"),
        (np.ones(5), "expected"),
        (np.ones((5, 0)), "expected"),
        (np.array([[1.0, 0]] * 3 + [[np.nan, 1], [1, 1]]), "'slice-0003'"),
        (np.array([[1.0, 0]] * 4 + [[0, 0]]), "'slice-0004'"),
    ],
)
def test_bad_embeddings_are_refused(embeddings: np.ndarray, message: str) -> None:
    with pytest.raises(SupportError, match=message):
        build().with_embeddings(embeddings)


def test_half_precision_embeddings_come_out_normalised() -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float16) * 5
    result = build().with_embeddings(vectors).embeddings
    assert result is not None
    assert result.dtype == np.float32
    assert np.allclose(np.linalg.norm(result, axis=1), 1, atol=1e-6)


patients = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=40)


def named(owners: list[str]) -> SupportSet:
    n = len(owners)
    ids = [f"{i:03d}" for i in range(n)]
    return SupportSet(ids, owners, {1: "x"}, lambda _: IMAGES[0], lambda _: MASKS[0], class_presence=np.ones((n, 1)))


@given(patients, st.integers(1, 50), st.integers(0, 99))
def test_a_draw_is_even_over_patients(owners: list[str], n: int, seed: int) -> None:
    support = named(owners)
    drawn = support.draw(n, seed)
    assert len(drawn) == len(set(drawn.tolist())) == min(n, len(owners))
    assert drawn.tolist() == sorted(drawn.tolist())
    got, had = Counter(owners[i] for i in drawn), Counter(owners)
    most = max(got.values())
    # Nobody has two more than a patient who still has slices to give.
    assert all(got[patient] >= most - 1 or got[patient] == had[patient] for patient in had)


@given(patients, st.integers(1, 50), st.integers(0, 99), st.randoms(use_true_random=False))
def test_a_draw_ignores_order_and_is_nested(owners: list[str], n: int, seed: int, rng: object) -> None:
    support = named(owners)
    ids = {support.ids[i] for i in support.draw(n, seed)}
    order = list(range(len(owners)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    assert set(support.subset(order).sample(n, seed).ids) == ids
    assert set(support.sample(n, seed).sample(n, seed).ids) == ids
    assert ids <= set(support.sample(n + 1, seed).ids)


def test_seeds_draw_differently() -> None:
    support = named(list("abcdefg") * 10)
    assert len({tuple(support.draw(10, seed)) for seed in range(20)}) > 15
    with pytest.raises(SupportError, match="at least 1"):
        support.draw(0, 0)
