"""What an executor is: whatever runs one plain function over many items (docs/execution.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from tasks.retry import Retry
from tasks.worker import Failure

Item = TypeVar("Item")
Result = TypeVar("Result")
Noted = Callable[[Item, Retry], None]
"""Hears of each attempt that failed and is made again."""


@dataclass(frozen=True)
class Load:
    """What an executor does at this moment."""

    workers: int
    """Worker processes, as last counted; 0 while there is none."""
    in_flight: int
    """Items that were handed out and have not come back."""


class Executor(Protocol):
    """Runs a picklable function over items and yields results as they end."""

    name: str
    dashboard: str | None

    @property
    def workers(self) -> int:
        """Worker processes at this moment; at least 1."""
        ...

    @property
    def load(self) -> Load:
        """What it does; asks nobody, from whatever thread."""
        ...

    def map(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        stage: str = "",
        alone: int | None = None,
        noted: Noted[Item] | None = None,
    ) -> Iterator[tuple[Item, Result | Failure]]:
        """Yield each item with its result, or with the :class:`Failure` that took its place, as they end.

        Transient errors are tried again where the function runs.

        Args:
            function: safe to repeat.
            items: picklable.
            stage: decides the threads of the numeric libraries.
            alone: run one item after the other with nothing else beside it; so many deaths of its worker are its
                failure. Default: many at once, and only what ends its worker when alone fails.
            noted: hears of attempts that are made again.
        """
        ...
