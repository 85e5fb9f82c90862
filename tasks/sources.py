"""Sources over time: what has been added, changed or removed since the last run that ended."""

from __future__ import annotations

import logging

import pandas as pd

from rfss_core.imaging.names import case_id
from rfss_core.store import Manifest, Workspace
from rfss_core.store.stages import read_table, write_table
from tasks.summary import SourcesPart

SOURCES = "manifest/sources.parquet"
"""Name and digest of each case of the last run that ended."""
SHOWN = 5

log = logging.getLogger("rfss")


def source_changes(workspace: Workspace, manifest: Manifest) -> SourcesPart:
    """Compare the manifest's cases with those of the last run that ended.

    A case that is set aside now counts as neither: the quarantine says why.
    """
    if not workspace.files.exists(SOURCES):
        return SourcesPart(added=len(manifest.cases))
    before = read_table(workspace.files, SOURCES)
    known = dict(zip(before["name"], before["source_digest"], strict=True))
    now = dict(zip(manifest.cases["name"], manifest.cases["source_digest"], strict=True))
    aside = set(manifest.quarantine["name"])
    return SourcesPart(
        added=len(now.keys() - known.keys()),
        changed=sorted(name for name in now.keys() & known.keys() if now[name] != known[name]),
        removed=sorted(known.keys() - now.keys() - aside),
    )


def describe_changes(changes: SourcesPart) -> list[str]:
    """Return a sentence for the changed and one for the removed sources, where there are any."""
    notes = []
    if changes.changed:
        notes.append(
            f"{len(changes.changed)} sources (image or label) changed since the last run: {_listed(changes.changed)}; "
            "what depends on them was made again"
        )
    if changes.removed:
        notes.append(
            f"{len(changes.removed)} sources of the last run are gone: {_listed(changes.removed)}; they are in no data "
            "set from this one on, earlier versions keep them"
        )
    return notes


def log_changes(workspace: Workspace, manifest: Manifest) -> None:
    """Write to the log what :func:`source_changes` finds."""
    for note in describe_changes(source_changes(workspace, manifest)):
        log.warning("%s", note)


def remember_sources(workspace: Workspace, manifest: Manifest) -> None:
    """Note the cases of a run that has ended; only then, so that a run that is killed reports the changes again."""
    write_table(workspace.files, SOURCES, pd.DataFrame(manifest.cases[["name", "source_digest"]]))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    # In logs and in Prefect's UI, where cases go by their ids.
    return ", ".join(case_id(name) for name in names[:SHOWN]) + more
