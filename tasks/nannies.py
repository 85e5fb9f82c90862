"""Nannies of this machine's clusters: each keeps its place, and one that gave up gets a successor."""

from __future__ import annotations

from typing import Any, cast

from distributed import Adaptive, SpecCluster
from distributed.core import Status

NANNIES_STAY = {"distributed.deploy.lost-worker-timeout": "365 days"}
"""A while after each death Dask looks whether the place is empty, and ends the nanny if it is: also where it is empty
because of another death, whose successor just starts and has work by then. That would be blamed for its end."""


class Successors(Adaptive):
    """Adaptive scaling between n and n workers: what it has to do is replace nannies that closed themselves.

    A nanny starts its worker again, but gives up on one that fails while it starts.
    """

    async def recommendations(self, target: int) -> dict[str, Any]:
        """Make room for successors before looking at what is missing; see :class:`distributed.Adaptive`."""
        workers = cast("SpecCluster", self.cluster).workers
        for name, nanny in list(workers.items()):
            if nanny.status in (Status.closed, Status.failed):
                del workers[name]
        found: dict[str, Any] = await super().recommendations(target)
        return found
