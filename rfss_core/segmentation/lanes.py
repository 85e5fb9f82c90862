"""Independent pieces of CPU work side by side, each on one thread of arithmetic.

Matrix products and convolutions split their sums differently for different numbers of threads, so the last bits of
their results depend on it, and near a tie so does a label. Here the threads share whole pieces of work instead: the
pieces, and the arithmetic inside each, are the same whether one thread runs them all or sixteen do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Lanes:
    """Runs pieces of work in as many lanes as torch has threads on the CPU, and in one lane on an accelerator.

    Args:
        device: where the work computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cpu = device.type == "cpu"

    @property
    def count(self) -> int:
        """Pieces that run at the same time."""
        return torch.get_num_threads() if self._on_cpu else 1

    def map(self, run: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return ``[run(item) for item in items]``, in order; the first error is raised.

        Args:
            run: must not touch anything that another piece writes.
            items: the pieces.
        """
        if not self._on_cpu:
            return [run(item) for item in items]
        threads = torch.get_num_threads()

        def alone(item: Item) -> Result:
            # Inference mode and the number of threads belong to the calling thread.
            with torch.inference_mode():
                return run(item)

        # Also for one lane: the caller's own thread keeps its number of threads.
        with ThreadPoolExecutor(min(threads, max(1, len(items))), initializer=_single) as pool:
            try:
                return list(pool.map(alone, items))
            finally:
                # torch remembers the last number that any thread set, for threads that start later.
                torch.set_num_threads(threads)


def _single() -> None:
    torch.set_num_threads(1)
