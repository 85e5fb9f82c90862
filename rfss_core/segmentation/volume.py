"""Volume consistency: slices of the same volume that are already labelled become further memories.

As SAM 2 does for video (Ravi et al., arXiv:2408.00714, section 4; ``SAM2Base._prepare_memory_conditioned_features`` and
``_encode_memory_in_output``): a frame attends to its conditioning frames and to the memories of the frames just before
it, which hold the network's own predictions. Here the conditioning frames of a slice are its own retrieved supports and
the frames before it are its volume's slices. One pass goes up through the volume, one comes down, and the two are
averaged. Where all slices share their supports, a pass equals ``SAM2VideoPredictor`` on the video [support 0, ...,
support k - 1, slice 0, ..., slice n - 1].
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rfss_core.errors import SettingsError
from rfss_core.segmentation.adapter import Decoded, ImageFeatures, Sam2Adapter
from rfss_core.segmentation.attention import MemoryAttention, Recent
from rfss_core.segmentation.batching import run_in_batches
from rfss_core.segmentation.device_cache import DeviceCache
from rfss_core.segmentation.encoding import Memories, SupportEncoder
from rfss_core.segmentation.memory import BoundedCache
from rfss_core.segmentation.merging import gate
from rfss_core.segmentation.preprocess import MASK_BIAS, MASK_SCALE, prepare_images
from rfss_core.segmentation.segmenter import Slice, Supports
from rfss_core.segmentation.selection import Choice
from rfss_core.settings import SegmentationSettings

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Track:
    """One class followed through one volume in one direction."""

    plane: int
    """Place of the class among those to segment."""
    rows: tuple[int, ...]
    """The volume's queries, in the order in which they are visited."""


@dataclass(frozen=True)
class Request:
    """What is to be labelled."""

    queries: Sequence[Slice]
    choices: Sequence[Choice]
    """Supports of each query, by class."""
    support: Supports
    values: Sequence[int]
    """Classes."""
    limit: int
    """Queries in one batch, at most."""


@dataclass(frozen=True)
class _Past:
    """What a track remembers of the slices it has visited. Never changed in place: a batch may have to be repeated."""

    spatial: tuple[Tensor, ...] = ()
    """bfloat16 [S * S, M] each, the oldest first."""
    pointers: tuple[Tensor, ...] = ()
    """float32 [D] each, the newest first."""


@dataclass(frozen=True)
class _Image:
    """One encoded slice, for all classes and both directions."""

    features: ImageFeatures
    started: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors hold."""
        parts = (self.features.coarse, self.features.middle, self.features.fine, self.started)
        return sum(part.nbytes for part in parts)


@dataclass(frozen=True)
class _Stretch:
    """A few steps of all tracks, with the images and the supports' memories that they need."""

    steps: range
    images: dict[int, _Image]
    memories: Memories


@dataclass(frozen=True)
class _Visit:
    """One track at one slice, with the addresses of the memories of that slice's supports, in order."""

    track: int
    row: int
    keys: tuple[str, ...]


class VolumeTracker:
    """Labels the slices of volumes one after another, each with the memories of those before it.

    Args:
        adapter: the network.
        attention: its memory attention.
        encoder: gives the supports' memories.
        device_cache: brings them to the device.
        settings: ``volume_memories``, gate, pointers, caches.

    Raises:
        SettingsError: more memories than the network has temporal positions for.
    """

    def __init__(
        self,
        adapter: Sam2Adapter,
        attention: MemoryAttention,
        encoder: SupportEncoder,
        device_cache: DeviceCache,
        settings: SegmentationSettings,
    ) -> None:
        known = len(adapter.memory_attention.temporal_positions) - 1
        if settings.volume_memories > known:
            raise SettingsError(
                f"volume_memories is {settings.volume_memories}, but this network tells only {known} earlier slices "
                "apart; lower it"
            )
        self.adapter = adapter
        self.attention = attention
        self.encoder = encoder
        self.settings = settings
        self.device_cache = device_cache
        self._on_cpu = adapter.device.type == "cpu"

    def segment(self, request: Request, volumes: Sequence[Sequence[int]]) -> dict[int, list[Decoded]]:
        """Label every slice of some volumes in both directions and merge the two.

        Args:
            request: what is to be labelled.
            volumes: for each volume its queries, in the order of the slices.

        Returns:
            For each of these queries one plane a class.
        """
        decoded: dict[int, list[Decoded]] = {}
        lanes = self.encoder.lanes.count if self._on_cpu else request.limit
        # Enough volumes at a time to keep every lane, or the accelerator's batch, busy.
        together = -(-lanes // 2)
        for start in range(0, len(volumes), together):
            window = volumes[start : start + together]
            planes = [(volume, plane) for volume in window for plane in range(len(request.values))]
            up = [Track(plane, tuple(volume)) for volume, plane in planes]
            down = [Track(plane, tuple(volume[::-1])) for volume, plane in planes]
            outputs = self.follow(request, [*up, *down])
            for track, ascending, descending in zip(up, outputs, outputs[len(up) :], strict=False):
                for row, one, other in zip(track.rows, ascending, descending[::-1], strict=True):
                    decoded.setdefault(row, []).append(merge_directions(one, other))
        return decoded

    def follow(self, request: Request, tracks: Sequence[Track]) -> list[list[Decoded]]:
        """Follow tracks, all of them in step.

        Args:
            request: what is to be labelled.
            tracks: any.

        Returns:
            For each track its slices' planes, in the order of the visit.
        """
        capacity = self.settings.host_cache_mb if self._on_cpu else self.settings.device_cache_mb
        cache: BoundedCache[_Image] = BoundedCache(capacity * 2**20, lambda image: image.nbytes)
        pasts = [_Past() for _ in tracks]
        outputs: list[list[Decoded]] = [[] for _ in tracks]
        longest = max(len(track.rows) for track in tracks)
        # However long the volume is, no more than a stretch of it is held besides the cache. The two directions meet in
        # the middle, and from there on each finds what the other one left last in the cache.
        for start in range(0, longest, request.limit):
            steps = range(start, min(start + request.limit, longest))
            live = [index for index, track in enumerate(tracks) if len(track.rows) > start]
            stretch = self._prepare(request, [tracks[index] for index in live], steps, cache)

            def advance(batch: Sequence[int], stretch: _Stretch = stretch) -> list[tuple[_Past, list[Decoded]]]:
                return self._advance(request, tracks, {index: pasts[index] for index in batch}, stretch)

            # A track is as heavy as a query with one class.
            advanced = self._spread(advance, live, request.limit * len(request.values))
            for index, (past, decoded) in zip(live, advanced, strict=True):
                pasts[index] = past
                outputs[index].extend(decoded)
        return outputs

    def _spread(
        self, run: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], limit: int
    ) -> list[Result]:
        # On a CPU every item alone, so that its bits depend neither on its company nor on what a cache holds.
        pieces = [[item] for item in items] if self._on_cpu else [items]
        done = self.encoder.lanes.map(partial(run_in_batches, limit=limit, run=run), pieces)
        return [result for piece in done for result in piece]

    def _prepare(
        self, request: Request, tracks: Sequence[Track], steps: range, cache: BoundedCache[_Image]
    ) -> _Stretch:
        visits = [(track.plane, row) for track in tracks for row in track.rows[steps.start : steps.stop]]
        rows = list(dict.fromkeys(row for _, row in visits))
        images = {row: image for row in rows if (image := cache.get(str(row))) is not None}
        missing = [row for row in rows if row not in images]
        encode = partial(self._encode, request.queries)
        images.update(zip(missing, self._spread(encode, missing, request.limit), strict=True))
        for row in missing:
            cache.put(str(row), images[row])
        needed = {index for plane, row in visits for index in request.choices[row][plane]}
        return _Stretch(steps, images, self.encoder.memories(request.support, sorted(needed), request.values))

    def _encode(self, queries: Sequence[Slice], rows: Sequence[int]) -> list[_Image]:
        size, device = self.adapter.traits.image_size, self.adapter.device
        pixels = prepare_images([queries[row] for row in rows], size, device, self.adapter.dtype)
        features = self.adapter.encode_image(pixels)
        started = self.attention.start(features.coarse)
        places = torch.arange(len(rows), device=device)[:, None]
        return [_Image(features.take(place), started[place]) for place in places]

    def _advance(
        self, request: Request, tracks: Sequence[Track], pasts: dict[int, _Past], stretch: _Stretch
    ) -> list[tuple[_Past, list[Decoded]]]:
        """Take some tracks over a stretch; ``pasts``, by track, is this call's own."""
        decoded: dict[int, list[Decoded]] = {index: [] for index in pasts}
        for step in stretch.steps:
            # Together what attends to equally many tokens, whose pointers' distances have the same scale.
            groups: dict[tuple[int, int], list[_Visit]] = defaultdict(list)
            for index in pasts:
                track = tracks[index]
                if step >= len(track.rows):
                    continue
                row = track.rows[step]
                chosen = request.choices[row][track.plane]
                keys = tuple(stretch.memories.keys[one, request.values[track.plane]] for one in chosen)
                span = min(len(keys) + len(track.rows), self.adapter.traits.max_pointers) - 1
                groups[len(keys), span].append(_Visit(index, row, keys))
            for (_, span), visits in groups.items():
                features = ImageFeatures.join([stretch.images[visit.row].features for visit in visits])
                outputs = self._decode(visits, features, stretch, pasts, step, span)
                for position, visit in enumerate(visits):
                    decoded[visit.track].append(outputs.row(position))
                if any(step + 1 < len(tracks[visit.track].rows) for visit in visits):
                    for visit, spatial, pointer in zip(visits, *self._remember(features, outputs), strict=True):
                        past = pasts[visit.track]
                        pasts[visit.track] = _Past(
                            (*past.spatial, spatial)[-self.settings.volume_memories :],
                            (pointer, *past.pointers)[:span],
                        )
        return [(pasts[index], decoded[index]) for index in pasts]

    def _decode(
        self,
        visits: Sequence[_Visit],
        features: ImageFeatures,
        stretch: _Stretch,
        pasts: dict[int, _Past],
        step: int,
        span: int,
    ) -> Decoded:
        traits = self.adapter.traits
        batch = self.device_cache.collect([visit.keys for visit in visits], stretch.memories.by_key)
        pointers = batch.pointers if self.settings.use_object_pointers else None
        before = [pasts[visit.track] for visit in visits]
        recent = Recent(
            _stack([past.spatial for past in before], (traits.grid**2, traits.memory_dim), features.coarse),
            _stack([past.pointers for past in before], (traits.hidden_dim,), features.coarse),
            position=step,
            span=span,
        )
        started = torch.cat([stretch.images[visit.row].started for visit in visits])
        conditioned = self.attention.condition(started, batch.spatial, batch.supports, pointers, recent)
        return self.adapter.decode(features, conditioned, multimask=traits.multimask)

    def _remember(self, features: ImageFeatures, outputs: Decoded) -> tuple[Tensor, Tensor]:
        """Turn predictions into memories: bfloat16 [B, S * S, M] and pointers float32 [B, D].

        As ``SAM2Base._encode_new_memory`` with a mask that no prompt gave: not binarised. What the gate calls absent in
        the labels is remembered as absent.
        """
        size, threshold = self.adapter.traits.image_size, self.settings.object_score_threshold
        score = outputs.object_score
        present = torch.ones_like(score, dtype=torch.bool) if threshold is None else score > threshold
        logits = interpolate(
            gate(outputs.logits, score, threshold)[:, None], size=(size, size), mode="bilinear", align_corners=False
        )
        spatial = self.adapter.encode_memory(features.coarse, logits.sigmoid() * MASK_SCALE + MASK_BIAS, present)
        pointers = self.adapter.choose_pointer(outputs.token, present)
        return spatial.to(torch.bfloat16).flatten(2).transpose(1, 2).contiguous(), pointers.float()


def merge_directions(one: Decoded, other: Decoded) -> Decoded:
    """Average what the two directions say about the same slices.

    The mean of logits is the geometric mean of the odds (a logarithmic opinion pool): a direction that is unsure leaves
    the word to the other, and turning the volume round changes nothing. Equal weights, because both directions rest on
    the same supports; a weight by distance from the volume's end would be a parameter that nothing here could choose.

    Args:
        one: of one direction.
        other: of the other one.

    Returns:
        Mean logits, predicted IoU and object score. The token, which has no meaning after that, is ``one``'s.
    """
    return Decoded(
        (one.logits + other.logits) / 2,
        (one.predicted_iou + other.predicted_iou) / 2,
        (one.object_score + other.object_score) / 2,
        one.token,
    )


def _stack(parts: Sequence[Sequence[Tensor]], shape: tuple[int, ...], like: Tensor) -> Tensor:
    """[P] lists of as many tensors each -> [P, r, ...]; r may be 0."""
    if not parts[0]:
        return like.new_empty(len(parts), 0, *shape)
    return torch.stack([torch.stack(list(part)) for part in parts])
