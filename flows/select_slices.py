"""Flow ``select``: which slices to label next."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect import flow

from flows.endings import with_reasons
from flows.running import open_run
from rfss_core.errors import SettingsError
from rfss_core.settings import LabelSettings, SelectSettings
from rfss_core.store.files import Files
from tasks.embed import embed
from tasks.ingest import ingest
from tasks.select import choose_slices
from tasks.served import set_aside
from tasks.worklist import Selection

FOLDER = "selection"


@flow(name="select", validate_parameters=True, persist_result=False)
@with_reasons
def select_slices(settings: SelectSettings, out: str) -> Selection:
    """Choose the slices whose labels would serve the others best, by their embeddings alone.

    Stages: ingest -> embed -> select. The first two are those of ``label_dataset``: in the same workspace it finds
    their work done.

    Args:
        settings: as for ``label_dataset``, but labels may be missing; the slices of labelled cases count as chosen.
        out: folder or URL to write, or the name of the JSON file; see :class:`tasks.worklist.Worklist`.

    Returns:
        What stands in ``select.json``.

    Raises:
        SettingsError: no workspace, or fewer slices than asked for can be chosen.
        InputError: input that cannot be used at all.
    """
    if not settings.workspace:
        raise SettingsError("workspace is missing; name a folder or URL that may keep the embeddings")
    with open_run(settings) as run:
        manifest = ingest(run, needs_labels=False)
        embeddings = embed(run, manifest)
        manifest = set_aside(run, manifest, embeddings.refused, embeddings.refused_ids)
        return choose_slices(run, manifest, embeddings, out)


@contextmanager
def with_workspace(settings: LabelSettings) -> Iterator[SelectSettings]:
    """Yield the settings with a temporary folder for a workspace where they name none."""
    with tempfile.TemporaryDirectory(prefix="rfss-select-") as temporary:
        yield SelectSettings.model_validate({**settings.model_dump(), "workspace": settings.workspace or temporary})


def output_folder(workspace: str) -> Path:
    """Return where a selection is written unless told: in a local workspace, else in the current folder."""
    root = Files(workspace).root if workspace else None
    return Path(FOLDER) if root is None else root / FOLDER
