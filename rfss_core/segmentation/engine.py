"""The batched SAM 2 few-shot engine: queries x classes against memories that are encoded once.

The procedure of Zhao et al., "Retrieval-augmented Few-shot Medical Image Segmentation with Foundation Models"
(arXiv:2408.08813, section III-C): retrieved slices and their masks become SAM 2 memories, memory attention conditions
the query on them, and the mask decoder runs without any prompt. In mode ``meta`` the numbers are those of the official
``SAM2VideoPredictor`` run on the video [support 0, ..., support k - 1, query].
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rfss_core.digest import digest_json
from rfss_core.segmentation.adapter import Decoded, Sam2Adapter
from rfss_core.segmentation.attention import MemoryAttention
from rfss_core.segmentation.batching import bytes_per_query, free_bytes, run_in_batches, send
from rfss_core.segmentation.device_cache import DeviceCache
from rfss_core.segmentation.encoding import Memories, SupportEncoder
from rfss_core.segmentation.memory import Memory, MemoryBank
from rfss_core.segmentation.merging import gate, merge
from rfss_core.segmentation.preprocess import prepare_images, to_native
from rfss_core.segmentation.reduction import MemoryReducer
from rfss_core.segmentation.segmenter import (
    Neighbours,
    Segmentation,
    Slice,
    Supports,
    check_request,
    split_volumes,
)
from rfss_core.segmentation.selection import Choice, choose_supports
from rfss_core.segmentation.volume import Request, VolumeTracker
from rfss_core.settings import SegmentationSettings, SupportMaskMode

# Query tokens in one batch on a CPU.
_CPU_TOKENS = 1024


@dataclass(frozen=True)
class _Pair:
    """One query of a batch and one class, with the addresses of the memories that it attends to, in order."""

    row: int
    plane: int
    keys: tuple[str, ...]


class MemorySegmenter:
    """The ``sam2-memory`` segmenter.

    Supports without a class are kept as negative evidence: their memory is that of an empty mask. A class that none of
    a query's supports has is run all the same, as the official predictor would.

    Args:
        adapter: the network.
        bank: where memories are kept.
        settings: gate, pointers, merging, batch size, caches.
        mode: how support masks reach the memory encoder.
        trained: whether the weights were ever trained.
    """

    def __init__(
        self,
        adapter: Sam2Adapter,
        bank: MemoryBank,
        settings: SegmentationSettings,
        *,
        mode: SupportMaskMode,
        trained: bool,
    ) -> None:
        self.adapter = adapter
        self.bank = bank
        self.settings = settings
        self.mode = mode
        self.trained = trained
        self.encoder = SupportEncoder(adapter, bank, mode)
        self.attention = MemoryAttention(adapter.memory_attention, adapter.traits, adapter.device, adapter.dtype)
        stride, border = settings.background_stride, settings.background_border
        reducer = MemoryReducer(stride, border) if stride > 1 else None
        self.device_cache = DeviceCache(adapter.device, settings.device_cache_mb * 2**20, reducer)
        self.tracker = VolumeTracker(adapter, self.attention, self.encoder, self.device_cache, settings)

    @property
    def digest(self) -> str:
        """sha256 of weights, mode, arithmetic and the settings that decide labels."""
        reducer = self.device_cache.reducer
        return digest_json(
            {
                "segmenter": "sam2-memory",
                "memories": self.bank.identity,
                "object_score_threshold": self.settings.object_score_threshold,
                "use_object_pointers": self.settings.use_object_pointers,
                "merging": self.settings.merging,
                "class_supports": self.settings.class_supports,
                "absent_share": self.settings.absent_share if self.settings.class_supports else None,
                "reduction": None if reducer is None else [reducer.stride, reducer.border],
                "volume_memories": self.settings.volume_memories,
            }
        )

    @torch.inference_mode()
    def segment(
        self,
        queries: Sequence[Slice],
        neighbours: Sequence[Neighbours],
        support: Supports,
        *,
        classes: Sequence[int] | None = None,
        volumes: Sequence[int] | None = None,
        keep_logits: bool = True,
    ) -> list[Segmentation]:
        """Label slices; see :meth:`rfss_core.segmentation.segmenter.Segmenter.segment`."""
        values = check_request(queries, neighbours, support, classes)
        runs = split_volumes(len(queries), volumes)
        if not queries:
            return []
        choices = self.choose(neighbours, support, values)
        most = max(len(own) for choice in choices for own in choice) + self.settings.volume_memories
        request = Request(queries, choices, support, values, self._limit(most, len(values)))
        # A volume of one slice has no neighbours: it goes the way of every slice that stands alone.
        whole = [run for run in runs if len(run) > 1 and self.settings.volume_memories > 0]
        tracked = {row for run in whole for row in run}
        alone = [row for row in range(len(queries)) if row not in tracked]
        results = self._label_alone(request, alone, keep_logits=keep_logits)
        if whole:
            results.update(self._label_volumes(request, whole, keep_logits=keep_logits))
        return [results[row] for row in range(len(queries))]

    def _label_alone(self, request: Request, rows: Sequence[int], *, keep_logits: bool) -> dict[int, Segmentation]:
        lanes, queries, choices, values = self.encoder.lanes, request.queries, request.choices, request.values
        pieces = [rows[start : start + self._piece] for start in range(0, len(rows), self._piece)]
        results: dict[int, Segmentation] = {}
        for start in range(0, len(pieces), lanes.count):
            window = pieces[start : start + lanes.count]
            wanted = {index for piece in window for row in piece for own in choices[row] for index in own}
            memories = self.encoder.memories(request.support, sorted(wanted), values)

            def label(batch: Sequence[int], memories: Memories = memories) -> list[Segmentation]:
                decoded = self._decode(
                    [queries[row] for row in batch], [choices[row] for row in batch], memories, values
                )
                return [
                    self._finish(queries[row].shape[:2], planes, values, keep_logits=keep_logits)
                    for row, planes in zip(batch, decoded, strict=True)
                ]

            labelled = lanes.map(partial(run_in_batches, limit=request.limit, run=label), window)
            for piece, segmentations in zip(window, labelled, strict=True):
                results.update(zip(piece, segmentations, strict=True))
        return results

    def _label_volumes(
        self, request: Request, volumes: Sequence[Sequence[int]], *, keep_logits: bool
    ) -> dict[int, Segmentation]:
        decoded = self.tracker.segment(request, volumes)

        def finish(row: int) -> Segmentation:
            shape = request.queries[row].shape[:2]
            return self._finish(shape, decoded[row], request.values, keep_logits=keep_logits)

        rows = list(decoded)
        return dict(zip(rows, self.encoder.lanes.map(finish, rows), strict=True))

    def choose(self, neighbours: Sequence[Neighbours], support: Supports, values: Sequence[int]) -> list[Choice]:
        """Return, for each query and each class, the positions of the supports to attend to, in order.

        All that serve the class, or, with ``class_supports``, a choice of them.
        """
        count, share = self.settings.class_supports, self.settings.absent_share
        found = [[[int(index) for index in one.for_class(value)] for value in values] for one in neighbours]
        if count is None:
            return found
        return [
            [
                choose_supports(indices, partial(self.encoder.holds, support, value=value), count, share)
                for value, indices in zip(values, by_class, strict=True)
            ]
            for by_class in found
        ]

    @property
    def _piece(self) -> int:
        if self.adapter.device.type != "cpu":
            return self.settings.batch_size
        # On a CPU larger batches win nothing; small ones keep every lane busy and the peak of memory low.
        return max(1, min(self.settings.batch_size, _CPU_TOKENS // self.adapter.traits.grid**2))

    def _limit(self, k: int, classes: int) -> int:
        # Free memory must not shape CPU batches: their last bits would depend on what else the machine does.
        if self.adapter.device.type == "cpu":
            return self._piece
        needed = bytes_per_query(self.adapter.traits, k, classes, self.adapter.dtype.itemsize)
        return max(1, min(self.settings.batch_size, free_bytes(self.adapter.device) // (2 * needed)))

    def _decode(
        self, queries: Sequence[Slice], choices: Sequence[Choice], memories: Memories, values: Sequence[int]
    ) -> list[list[Decoded]]:
        adapter = self.adapter
        pixels = prepare_images(queries, adapter.traits.image_size, adapter.device, adapter.dtype)
        features = adapter.encode_image(pixels)
        started = self.attention.start(features.coarse)
        decoded: list[list[Decoded | None]] = [[None] * len(values) for _ in queries]
        for pairs in _pairs_by_length(choices, memories.keys, values):
            rows = send(torch.tensor([pair.row for pair in pairs]), adapter.device)
            conditioned = self._attend(started[rows], pairs, memories.by_key)
            outputs = adapter.decode(features.take(rows), conditioned, multimask=adapter.traits.multimask)
            for position, pair in enumerate(pairs):
                decoded[pair.row][pair.plane] = outputs.row(position)
        return [[plane for plane in planes if plane is not None] for planes in decoded]

    def _attend(self, started: Tensor, pairs: Sequence[_Pair], memories: dict[str, Memory]) -> Tensor:
        batch = self.device_cache.collect([pair.keys for pair in pairs], memories)
        pointers = batch.pointers if self.settings.use_object_pointers else None
        return self.attention.condition(started, batch.spatial, batch.supports, pointers)

    def _finish(
        self, shape: tuple[int, ...], planes: Sequence[Decoded], values: Sequence[int], *, keep_logits: bool
    ) -> Segmentation:
        scores = torch.cat([plane.object_score for plane in planes])
        low = torch.cat([plane.logits for plane in planes])
        raw = to_native(low, (shape[0], shape[1]))
        gated = gate(raw, scores, self.settings.object_score_threshold)
        index, _ = merge(gated, self.settings.merging)
        names = np.array([0, *values], dtype=np.uint8)
        return Segmentation(
            labels=names[index.cpu().numpy()],
            object_score=scores.cpu().numpy(),
            predicted_iou=torch.cat([plane.predicted_iou for plane in planes]).cpu().numpy(),
            logits=raw.cpu().numpy() if keep_logits else None,
        )


def _pairs_by_length(
    choices: Sequence[Choice], addresses: dict[tuple[int, int], str], values: Sequence[int]
) -> list[list[_Pair]]:
    """Return all pairs of the batch, those with the same number of supports together."""
    groups: dict[int, list[_Pair]] = defaultdict(list)
    for plane, value in enumerate(values):
        for row, choice in enumerate(choices):
            keys = tuple(addresses[index, value] for index in choice[plane])
            groups[len(keys)].append(_Pair(row, plane, keys))
    return list(groups.values())
