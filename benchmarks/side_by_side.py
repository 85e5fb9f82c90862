"""Networks trained side by side in processes of their own until the time is up; needs nothing but Python."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

Key = TypeVar("Key", bound=Hashable)
Found = TypeVar("Found")


def side_by_side(
    work: Callable[..., Found],
    jobs: Mapping[Key, tuple[Any, ...]],
    *,
    processes: int,
    seconds: float,
    finished: Callable[[Key, Found], str | None],
) -> int:
    """Run jobs in the order given; what is under way when the time is up is ended, and what waits is left out.

    Args:
        work: a function of a module; it runs in a spawned process.
        jobs: name of each job -> its arguments.
        processes: how many run at once.
        seconds: from now.
        finished: called here with every result as it comes; returns a line to print, or None.

    Returns:
        How many jobs failed; a line on stderr says which and why.
    """
    deadline, failed = time.monotonic() + seconds, 0
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    waiting: dict[Future[Found], Key] = {pool.submit(work, *given): key for key, given in jobs.items()}
    try:
        for number, future in enumerate(as_completed(waiting, timeout=max(1.0, deadline - time.monotonic())), 1):
            if (error := future.exception()) is not None:
                failed += 1
                print(f"failed: {waiting[future]}: {error}", file=sys.stderr, flush=True)
            elif (line := finished(waiting[future], future.result())) is not None:
                print(f"{number}/{len(waiting)} {line}", flush=True)
    except TimeoutError:
        print("time is up", file=sys.stderr, flush=True)
    finally:
        # Not `with`: that would wait for what is under way.
        if not all(future.done() for future in waiting):
            for process in multiprocessing.active_children():
                process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
    return failed
