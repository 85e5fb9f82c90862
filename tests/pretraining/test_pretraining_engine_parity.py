"""Training sees the function that the engine runs: same weights, same logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rfss_core.pretraining.conditioning import InContextSam2, Memories
from rfss_core.pretraining.evaluation import Protocol, Split, segment
from rfss_core.pretraining.propagation import initialise
from rfss_core.pretraining.segmenter import build_sam2
from rfss_core.pretraining.source import Slices
from rfss_core.retrieval import Neighbours, SupportSet
from rfss_core.segmentation.engine import MemorySegmenter
from rfss_core.segmentation.memory import MemoryBank
from rfss_core.segmentation.transformers_adapter import TransformersAdapter
from rfss_core.settings import SegmentationSettings

SIZE = 128
K = 3


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sam2 = build_sam2(SIZE).eval()
    initialise(sam2, torch.rand(2, 4, SIZE, SIZE), torch.rand(2, 4, SIZE, SIZE).round(), seed=0)
    # A pointer's position, an absent class's code and an absent pointer are zero at the start: make them count.
    with torch.no_grad():
        for parameter in (sam2.occlusion_spatial_embedding_parameter, sam2.no_object_pointer):
            parameter.normal_()
        sam2.memory_temporal_positional_encoding.normal_(0, 0.3)
    return sam2


@pytest.fixture(scope="module")
def scene():
    generator = np.random.default_rng(0)
    images = generator.random((6, SIZE, SIZE)).astype(np.float32)
    labels = np.zeros((6, SIZE, SIZE), np.uint8)
    for i in range(5):
        labels[i, 20 + 8 * i : 60 + 8 * i, 30:90] = 1
    return images, labels


def run_engine(model, scene, nearest, pointers: bool):
    images, labels = scene
    adapter = TransformersAdapter(model, torch.device("cpu"), torch.float32)
    settings = SegmentationSettings(use_object_pointers=pointers, object_score_threshold=None)
    engine = MemorySegmenter(adapter, MemoryBank("test", 2**28), settings, mode="direct", trained=False)
    support = SupportSet.from_arrays([*images[:4], images[5]], [*labels[:4], labels[5]], classes={1: "disc"})
    found = [Neighbours(np.array(row), np.arange(K, dtype=np.float32)) for row in nearest]
    return engine.segment([images[4], images[0]], found, support, classes=[1])


@pytest.mark.parametrize("pointers", [True, False])
def test_parity_of_the_training_forward_with_the_engine(model, scene, pointers):
    images, labels = scene
    nearest = [[0, 2, 4], [3, 1, 2]]
    rows = [0, 1, 2, 3, 5]
    expected = run_engine(model, scene, nearest, pointers)
    context = InContextSam2(model).eval()
    with torch.no_grad():
        supports, masks = torch.from_numpy(images[rows]), torch.from_numpy(labels[rows]).float()
        memories = context.remember(context.encode(supports), masks, pointers)
        features = context.encode(torch.from_numpy(images[[4, 0]]))
        index = torch.tensor(nearest)
        # The bank keeps memories in bfloat16, as the official predictor does.
        tokens = memories.tokens.bfloat16().float()[index.flatten()]
        found = None if memories.pointers is None else memories.pointers[index.flatten()]
        conditioned, label = context.attend(
            features.coarse[:, None],
            features.position,
            Memories(tokens, found, None),
            torch.ones(2, 1, K, dtype=torch.bool),
            (torch.arange(K, 0, -1).float() / K).expand(2, -1),
            masks[index.flatten()],
        )
        answer = context.decode(conditioned[:, 0], features, label[:, 0])
        logits = torch.nn.functional.interpolate(answer.best()[:, None], size=(SIZE, SIZE), mode="bilinear")
    for row, result in enumerate(expected):
        assert result.logits is not None
        torch.testing.assert_close(torch.from_numpy(result.logits), logits[row], rtol=1e-3, atol=2e-3)
        assert result.object_score[0] == pytest.approx(float(answer.object_score[row]), abs=2e-3)


def test_parity_of_a_whole_group_with_single_queries(model, scene):
    """Sharing keys and values inside a group changes no answer."""
    images, labels = torch.from_numpy(scene[0][:4]), torch.from_numpy(scene[1][:4]).float()
    allow = ~torch.eye(4, dtype=torch.bool)
    allow[0, 1] = False
    offsets = torch.tensor([[0.25, 0.5, 0.75, 1.0]])
    context = InContextSam2(model).eval()
    with torch.no_grad():
        group, _ = context(images[None], labels[None], allow[None], offsets)
        for query in range(4):
            chosen = torch.nonzero(allow[query])[:, 0]
            memories = context.remember(context.encode(images[chosen]), labels[chosen])
            features = context.encode(images[query : query + 1])
            conditioned, label = context.attend(
                features.coarse[:, None],
                features.position,
                memories,
                torch.ones(1, 1, len(chosen), dtype=torch.bool),
                offsets[:, chosen],
                labels[chosen],
            )
            alone = context.decode(conditioned[:, 0], features, label[:, 0])
            torch.testing.assert_close(group.logits[query], alone.logits[0], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(group.propagated[query], alone.propagated[0], rtol=1e-3, atol=1e-4)


def test_parity_of_the_evaluation_with_the_engine(model, scene):
    images, labels = scene
    stored = np.round(images * 255).astype(np.uint8)
    names = np.array([f"p{i}" for i in range(6)])
    slices = Slices(stored, labels, names, names, np.zeros(6, np.float32), np.zeros(6, np.uint8))
    parts = Split(slices.take(np.array([0, 1, 2, 3, 5])), slices.take(np.array([4, 0])))
    nearest = np.array([[0, 2, 4], [3, 1, 2]])
    predicted, speed = segment(model, parts, nearest, Protocol(k=K, object_score_threshold=None))
    expected = run_engine(model, (stored.astype(np.float32) / 255, labels), nearest.tolist(), pointers=True)
    assert speed > 0
    for row, result in enumerate(expected):
        assert (predicted[row].numpy() == result.labels).mean() > 0.99
