"""Which cases a chunk could not serve: retrieval had too little for them, or the work failed on them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from rfss_core.errors import CaseError, TooFewSupportsError, TooManyQuarantinedError
from rfss_core.imaging import Quarantined
from rfss_core.retrieval import Neighbours
from rfss_core.store import Manifest, StageStore, StoredCase
from tasks.run import Run

SERVED = "served"
"""Table of a chunk: case_id, name, patient, fewest (support slices of a slice and class), reason and message.

Each chunk of stage segment has one; of other stages those chunks that set a case aside."""


class ServedCases:
    """What a chunk notes about its cases."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def serve(self, case: StoredCase, neighbours: Sequence[Neighbours]) -> None:
        """Note a case whose slices all have support slices."""
        self._add(case, min(hit.fewest for hit in neighbours), "", "")

    def refuse(self, case: StoredCase, error: CaseError | TooFewSupportsError) -> None:
        """Note a case that could not be served, and why."""
        self._add(case, 0, error.reason, str(error))

    def table(self) -> pd.DataFrame:
        """Return the chunk's table."""
        return pd.DataFrame(self._rows)

    def _add(self, case: StoredCase, fewest: int, reason: str, message: str) -> None:
        row = {"case_id": case.case_id, "name": case.name, "patient": case.patient}
        self._rows.append({**row, "fewest": fewest, "reason": reason, "message": message})


@dataclass(frozen=True)
class Served:
    """The same for all chunks."""

    refused: tuple[Quarantined, ...]
    refused_ids: frozenset[str]
    fewest: tuple[int, ...]
    """For each served case the fewest support slices of one of its slices."""


def refused_cases(table: pd.DataFrame) -> list[Quarantined]:
    """Return the cases of a chunk's table that could not be served."""
    rows = table[table["reason"] != ""].to_dict(orient="records")
    return [Quarantined(row["name"], row["reason"], row["message"], row["patient"]) for row in rows]


def read_served(run: Run, store: StageStore, chunks: Sequence[str]) -> Served:
    """Gather the tables of all chunks.

    Raises:
        TooManyQuarantinedError: more of the cases could not be served than the settings allow.
    """
    tables = [store.read_table(chunk, SERVED) for chunk in chunks]
    refused = tuple(case for table in tables for case in refused_cases(table))
    total = sum(len(table) for table in tables)
    check_share(run, "stage segment could not serve", refused, total)
    ids = frozenset(str(name) for table in tables for name in table.loc[table["reason"] != "", "case_id"])
    fewest = tuple(int(n) for table in tables for n in table.loc[table["reason"] == "", "fewest"])
    return Served(refused, ids, fewest)


def read_refused(store: StageStore, chunks: Iterable[str]) -> dict[str, Quarantined]:
    """Return the cases that chunks set aside, by case id, in order of the ids."""
    found: dict[str, Quarantined] = {}
    for chunk in chunks:
        table = store.read_table(chunk, SERVED)
        refused = table[table["reason"] != ""]
        found |= dict(zip(refused["case_id"], refused_cases(refused), strict=True))
    return dict(sorted(found.items()))


def check_share(run: Run, what: str, refused: Sequence[Quarantined], total: int) -> None:
    """Refuse to go on where too many cases were set aside (invariant 7).

    Args:
        run: the run.
        what: beginning of the message, a verb at its end.
        refused: the cases.
        total: cases of the stage.

    Raises:
        TooManyQuarantinedError: more than the settings allow.
    """
    limit = run.settings.execution.max_quarantined_fraction
    if len(refused) > limit * total:
        raise TooManyQuarantinedError(
            f"{what} {len(refused)} of {total} cases (allowed {limit:.0%}); first: {refused[0].case_id} "
            f"({refused[0].reason}); `rfss status` says what is wrong with each"
        )


def set_aside(run: Run, manifest: Manifest, refused: Sequence[Quarantined], dropped: Collection[str] = ()) -> Manifest:
    """Add cases that could not be served to the manifest's quarantine, and write it.

    Args:
        run: the run.
        manifest: all cases.
        refused: the cases.
        dropped: ids of cases that later stages must not meet at all.
    """
    if not refused:
        return manifest
    rows = pd.DataFrame([asdict(case) for case in refused], columns=manifest.quarantine.columns)
    quarantine = pd.concat([manifest.quarantine, rows], ignore_index=True)
    kept = {
        name: table[~table["case_id"].isin(dropped)].reset_index(drop=True)
        for name, table in (("cases", manifest.cases), ("slices", manifest.slices))
    }
    manifest = Manifest(**kept, quarantine=quarantine.sort_values(["name", "reason"], ignore_index=True))
    manifest.write(run.workspace.files)
    return manifest
