"""Embedders: from slices to vectors whose distance says how alike two slices look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from rfss_core.digest import digest_json
from rfss_core.embedding import preprocess as preprocessing
from rfss_core.embedding.slices import as_slice
from rfss_core.errors import ModelError
from rfss_core.presets import Preset
from rfss_core.settings import EmbeddingSettings
from rfss_core.weights import ModelReference, load_checkpoint, resolve_device, resolve_model

MODEL_TYPES = frozenset({"dinov2", "dinov2_with_registers"})


class Embedder(Protocol):
    """What turns slices into embeddings."""

    @property
    def name(self) -> str:
        """The model as the user named it."""
        ...

    @property
    def digest(self) -> str:
        """Digest of weights and preprocessing: same digest, same embeddings on the same kind of device."""
        ...

    @property
    def dim(self) -> int:
        """Components of an embedding."""
        ...

    @property
    def trained(self) -> bool:
        """False where the weights are random."""
        ...

    def embed(self, slices: Sequence[npt.ArrayLike], batch_size: int | None = None) -> npt.NDArray[np.float32]:
        """Return L2-normalised embeddings float32 [N, D] of slices [H, W] or [H, W, 3] in [0, 1]."""
        ...

    def embed_patches(
        self, slices: Sequence[npt.ArrayLike], batch_size: int | None = None
    ) -> list[npt.NDArray[np.float32]]:
        """Return L2-normalised patch tokens float32 [h, w, D] of each slice."""
        ...


class Dinov2Embedder:
    """The class and patch tokens of DINOv2, with or without registers (Oquab et al., 2023; Darcet et al., 2023).

    Args:
        reference: verified weights.
        device: where to run.
        batch_size: slices in one forward pass, unless :meth:`embed` is told otherwise; kept as an attribute.

    Raises:
        ModelError: another architecture, weights that do not fit, or an unusable image size.
    """

    def __init__(self, reference: ModelReference, device: torch.device, batch_size: int = 32) -> None:
        from transformers import AutoModel

        self._reference = reference
        self._device = device
        self.batch_size = batch_size
        # The checkpoints of some exporters lack the mask token, which only pretraining uses.
        self._model: Any = load_checkpoint(reference, AutoModel, MODEL_TYPES, optional=("mask_token",)).to(device)
        config: Any = self._model.config
        self._patch = _side(config.patch_size, reference, "patch_size")
        self._short_side = reference.input_side() or _side(config.image_size, reference, "image_size")
        self._dim = int(config.hidden_size)
        self._patches_from = 1 + int(getattr(config, "num_register_tokens", 0))

    @property
    def name(self) -> str:
        """The model as the user named it."""
        return self._reference.name

    @property
    def digest(self) -> str:
        """Digest of weights and preprocessing."""
        return digest_json(
            {
                "weights": self._reference.digest,
                "preprocessing": preprocessing.VERSION,
                "short_side": self._short_side,
            }
        )

    @property
    def dim(self) -> int:
        """Components of an embedding."""
        return self._dim

    @property
    def trained(self) -> bool:
        """False where the weights are random."""
        return self._reference.trained

    @property
    def reference(self) -> ModelReference:
        """The weights: their files' sha256 and, for a hub model, the commit."""
        return self._reference

    def embed(self, slices: Sequence[npt.ArrayLike], batch_size: int | None = None) -> npt.NDArray[np.float32]:
        """Embed slices.

        Slices that are resized to the same size share forward passes, whatever their order; an embedding does not
        depend on its company beyond float32 rounding.

        Args:
            slices: each [H, W] or [H, W, 3]; floats in [0, 1], or uint8.
            batch_size: slices in one forward pass. Default: the embedder's.

        Returns:
            float32 [N, D], L2-normalised.

        Raises:
            GeometryError: a slice of another shape.
            PixelError: NaN, infinite or unscaled pixels.
            ModelError: the model returned numbers that are not finite.
        """
        result = np.empty((len(slices), self._dim), dtype=np.float32)
        for rows, _, tokens in self._forward(slices, batch_size):
            result[rows] = self._normalised(tokens[:, 0])
        return result

    def embed_patches(
        self, slices: Sequence[npt.ArrayLike], batch_size: int | None = None
    ) -> list[npt.NDArray[np.float32]]:
        """Return each patch's own token: what is where in a slice.

        Args:
            slices: as for :meth:`embed`.
            batch_size: slices in one forward pass. Default: the embedder's.

        Returns:
            For each slice float32 [h, w, D], L2-normalised: one token for each patch of the resized slice.

        Raises:
            GeometryError: a slice of another shape.
            PixelError: NaN, infinite or unscaled pixels.
            ModelError: the model returned numbers that are not finite.
        """
        found: dict[int, npt.NDArray[np.float32]] = {}
        for rows, (height, width), tokens in self._forward(slices, batch_size):
            grid = (height // self._patch, width // self._patch)
            patches = self._normalised(tokens[:, self._patches_from :])
            found.update(zip(rows, patches.reshape(len(rows), *grid, self._dim), strict=True))
        return [found[i] for i in range(len(slices))]

    def _forward(
        self, slices: Sequence[npt.ArrayLike], batch_size: int | None
    ) -> Iterator[tuple[list[int], tuple[int, int], torch.Tensor]]:
        """Yield, a batch of equally sized slices at a time, their positions, size and tokens [n, T, D]."""
        size = batch_size or self.batch_size
        images = [as_slice(image, f"slice {i}") for i, image in enumerate(slices)]
        by_shape: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            shape = preprocessing.fitted_shape(image.shape[0], image.shape[1], self._short_side, self._patch)
            by_shape.setdefault(shape, []).append(i)
        for shape, members in by_shape.items():
            for start in range(0, len(members), size):
                rows = members[start : start + size]
                pixels = torch.stack([preprocessing.preprocess(images[i], shape) for i in rows]).to(self._device)
                with torch.inference_mode():
                    tokens = self._model(pixel_values=pixels).last_hidden_state
                yield rows, shape, tokens

    def _normalised(self, tokens: torch.Tensor) -> npt.NDArray[np.float32]:
        unit: npt.NDArray[np.float32] = torch.nn.functional.normalize(tokens.double(), dim=-1).float().cpu().numpy()
        if not np.isfinite(unit).all():
            raise ModelError(f"model '{self.name}' returned embeddings that are not finite; its weights are damaged")
        return unit


def load_embedder(settings: EmbeddingSettings, preset: Preset, device: str = "auto") -> Dinov2Embedder:
    """Load the DINOv2 that the settings, else the preset, name.

    Args:
        settings: model, revision and batch size.
        preset: source of what the settings leave open.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<n>``.

    Returns:
        The embedder, in evaluation mode.

    Raises:
        ModelNotFoundError: nothing at the reference, or the hub is out of reach.
        ModelError: pickled weights, another architecture, or weights that do not fit their configuration.
        SettingsError: a device that this machine lacks.
    """
    # The preset's revision pins the preset's model, not another one.
    revision = settings.revision or (preset.embedding_revision if settings.model is None else None)
    reference = resolve_model(settings.model or preset.embedding_model, revision)
    return Dinov2Embedder(reference, resolve_device(device), settings.batch_size)


def _side(value: Any, reference: ModelReference, what: str) -> int:
    side = value if isinstance(value, int) else (value[0] if len(set(value)) == 1 else 0)
    if side < 1:
        raise ModelError(f"model '{reference.name}': {what} {value} is not a square; choose another model")
    return int(side)
