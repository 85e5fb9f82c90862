"""Batches that fit: chosen from free memory, halved and retried when they do not."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor

from rfss_core.errors import ShortOfMemoryError
from rfss_core.segmentation.adapter import Traits

Item = TypeVar("Item")
Result = TypeVar("Result")

# Live float32 values per stride-4 cell of one image in the encoder, and of one mask in the decoder: measured on Hiera.
_ENCODER_VALUES, _DECODER_VALUES = 1600, 120


def free_bytes(device: torch.device) -> int:
    """Return the bytes that can still be allocated on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    return int(psutil.virtual_memory().available)


def bytes_per_query(traits: Traits, k: int, classes: int, itemsize: int) -> int:
    """Estimate what one query of a batch needs at its peak.

    Args:
        traits: the network.
        k: supports a query.
        classes: to segment.
        itemsize: bytes of one number.
    """
    cells = traits.grid**2
    projected = 2 * k * classes * cells * traits.hidden_dim
    gathered = 2 * k * classes * cells * traits.hidden_dim
    encoder = _ENCODER_VALUES * 16 * cells
    decoder = _DECODER_VALUES * 16 * cells * classes
    return itemsize * (projected + gathered + max(encoder, decoder))


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the host to a device, without waiting for what an accelerator still has to do.

    Only from pinned memory is a copy to CUDA asynchronous; torch keeps the pinned block until the copy is done.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def run_in_batches(
    items: Sequence[Item], limit: int, run: Callable[[Sequence[Item]], Sequence[Result]]
) -> list[Result]:
    """Run ``run`` over consecutive batches; a batch that runs out of memory is halved and tried again.

    Work that is done stays done; after a shortage later batches keep the smaller size.

    Args:
        items: all items.
        limit: size of a batch, at most.
        run: returns one result an item, in order.

    Returns:
        All results, in order.

    Raises:
        ShortOfMemoryError: a single item does not fit.
    """
    results: list[Result] = []
    limit = max(1, limit)
    while len(results) < len(items):
        batch = items[len(results) : len(results) + limit]
        try:
            results.extend(run(batch))
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_shortage(error):
                raise
            if len(batch) == 1:
                raise ShortOfMemoryError(
                    "one slice alone does not fit into memory; lower k, use dtype bfloat16, a smaller model, or "
                    "device cpu"
                ) from error
            limit = len(batch) // 2
        else:
            continue
        # Outside the handler, where the failed batch's tensors are no longer held by the traceback.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return results


def _is_shortage(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU allocator raises a plain RuntimeError.
    return "DefaultCPUAllocator" in str(error) or "not enough memory" in str(error)
