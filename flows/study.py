"""Flow ``study``: a grid of evaluations on the same splits, its tables and plots."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import BaseModel

from flows.endings import outcome_of, with_reasons
from flows.evaluate import evaluate
from flows.running import open_run
from flows.session import terminal_listener
from flows.showing import put
from rfss_core.errors import ExecutionError, RfssError
from rfss_core.events import ChunkFailed, ChunkFinished, EventStream, StageFinished, StageStarted
from rfss_core.imaging import discover, open_pseudonyms
from rfss_core.store.files import Files
from rfss_core.study import Plan, PlannedRow, RowResult, StudySettings, plan_study
from rfss_core.study.check import Checked, check_patients, check_plan
from rfss_core.study.plot import render_bars, render_curve
from rfss_core.study.result import read_row, row_file, versions, write_row
from rfss_core.study.table import Verdict, csv_text, judge, lines_of, markdown, to_json
from rfss_core.weights import resolve_device
from tasks.ingest import ingest
from tasks.progress import PrefectProgress, log_event

STAGE = "study"
WORKSPACE = "workspace"
"""Folder of the output folder where the rows of all its studies keep images, embeddings, memories and masks."""
HOPELESS = 3
"""So many rows that fail one after another end the study."""

log = logging.getLogger("rfss")


class StudyOutcome(BaseModel):
    """What a study left behind."""

    name: str
    folder: str
    rows: int
    read_back: int
    """Rows that an earlier run had finished."""
    table: str
    """Markdown."""
    claims: dict[str, bool]
    """Whether each holds."""
    notes: list[str]


@flow(name="study", validate_parameters=True, persist_result=False)
@with_reasons
def study(settings: StudySettings, out: str, workspace: str | None = None) -> StudyOutcome:
    """Evaluate every row of a study, and write its tables and plots to ``<out>/<name>``.

    Finished rows are kept in ``<out>/rows`` under the digest of all that they depend on, so an interrupted study goes
    on where it stopped, and studies with the same output folder share rows.

    Args:
        settings: the study.
        out: folder or URL to write.
        workspace: of all rows. Default: ``<out>/workspace``.

    Returns:
        The tables.

    Raises:
        SettingsError: the study needs more patients or support slices than there are.
        InputError: input that cannot be used, or a class that a split does not show.
        LeakError: a test case's image is in the support set.
        ExecutionError: rows failed; the others are written.
    """
    files = Files(out)
    plan = plan_study(settings, workspace or place_of(files))
    checked = _prepare(plan)
    rows, known, failed = _measure(plan, checked, files)
    verdicts = [judge(claim, rows) for claim in settings.claims]
    table = _write(plan, rows, verdicts, checked, files) if rows else ""
    if failed:
        first, error = failed[0]
        raise ExecutionError(
            f"{len(failed)} of {len(plan.rows)} rows of study '{settings.name}' are missing, first '{first.label}', "
            f"seed {first.seed}: {error}. The others are kept: mend the cause and start the same command again"
        ) from error
    key = f"rfss-study-{settings.name}"[:60].strip("-")
    put(create_markdown_artifact, table, key=key, description=f"Study {settings.name}")
    return StudyOutcome(
        name=settings.name,
        folder=f"{files.url}/{settings.name}",
        rows=len(rows),
        read_back=known,
        table=table,
        claims={verdict.claim.text: verdict.holds for verdict in verdicts},
        notes=list(checked.notes),
    )


def place_of(files: Files) -> str:
    """Return the workspace of the studies with this output folder."""
    return f"{files.url}/{WORKSPACE}"


@flow(name="study-check", validate_parameters=True, persist_result=False)
@with_reasons
def prepare(settings: StudySettings, out: str, workspace: str | None = None) -> Checked:
    """Find all that can be wrong with a study before a model runs; ingests the labelled cases on the way.

    Args:
        settings: the study.
        out: folder or URL that it would write.
        workspace: of all rows. Default: ``<out>/workspace``.

    Returns:
        The sizes of its rows, and what is not as it asks.

    Raises:
        SettingsError: too few patients, or k above the number of support slices.
        InputError: a class that a split does not show, or input that cannot be used at all.
        LeakError: a test case's image is in the support set.
    """
    return _prepare(plan_study(settings, workspace or place_of(Files(out))))


def _prepare(plan: Plan) -> Checked:
    settings = plan.rows[0].settings
    found = discover(settings.images, settings.labels, settings.imaging, open_pseudonyms(settings.privacy))
    check_patients(plan, [case.patient for case in found.cases if case.label is not None])
    with open_run(settings) as run:
        return check_plan(plan, ingest(run, labelled_only=True))


def _measure(
    plan: Plan, checked: Checked, files: Files
) -> tuple[list[RowResult], int, list[tuple[PlannedRow, RfssError]]]:
    """Return the rows in the plan's order, how many were there before, and those that failed."""
    names = checked.fingerprints(plan)
    results = [read_row(files, name) for name in names]
    known, failed = sum(found is not None for found in results), []
    events = EventStream([terminal_listener.get() or log_event, PrefectProgress()])
    events.emit(StageStarted(STAGE, len(plan.rows), known, "rows"))
    for place, row in enumerate(plan.rows):
        if results[place] is not None:
            continue
        title = f"{row.label}, seed {row.seed}"
        try:
            # A row that equals another but for its name may have been written meanwhile.
            results[place] = read_row(files, names[place]) or measure_row(row, names[place], files)
        except RfssError as error:
            failed.append((row, error))
            events.emit(ChunkFailed(STAGE, title, type(error).__name__, str(error)))
            if len(failed) >= HOPELESS and sum(found is not None for found in results) == known:
                break
            continue
        events.emit(ChunkFinished(STAGE, title, 0, 0.0, 0.0, 0.0))
    # What is read back may have been measured under another name, in another study.
    rows = [
        found.model_copy(update={"label": row.label})
        for row, found in zip(plan.rows, results, strict=True)
        if found is not None
    ]
    events.emit(StageFinished(STAGE, 0.0, f"{len(rows)} of {len(plan.rows)} rows, {known} of them from before"))
    return rows, known, failed


def measure_row(row: PlannedRow, fingerprint: str, files: Files) -> RowResult:
    """Evaluate one row and keep its result."""
    log.info("study row: %s, seed %d", row.label, row.seed)
    evaluation = outcome_of(evaluate, row.settings, row.test_patients, row.support_patients)
    place = row_file(fingerprint).replace(".json", ".yaml")
    local = files.local_path(place)
    result = RowResult(
        fingerprint=fingerprint,
        label=row.label,
        seed=row.seed,
        command=row.command(local),
        settings=row.config() if row.extra else "",
        evaluation=evaluation,
        versions=versions(),
        device=str(resolve_device(row.settings.segmentation.device)),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_row(files, result)
    return result


def _write(plan: Plan, rows: Sequence[RowResult], verdicts: Sequence[Verdict], checked: Checked, files: Files) -> str:
    study, folder = plan.study, plan.study.name
    lines = lines_of(study, rows)
    table = markdown(study, lines, verdicts)
    if checked.notes:
        table += "\n" + "\n".join(f"- {note}" for note in checked.notes) + "\n"
    content = {
        "study": study.model_dump(mode="json"),
        **to_json(lines, verdicts),
        "rows": [row.model_dump(mode="json") for row in rows],
        "notes": list(checked.notes),
    }
    files.write_bytes(f"{folder}/study.json", json.dumps(content, indent=1).encode() + b"\n")
    files.write_bytes(f"{folder}/rows.csv", csv_text(rows).encode())
    files.write_bytes(f"{folder}/table.md", table.encode())
    title = study.title or study.name
    for kind in ("png", "svg"):
        files.write_bytes(f"{folder}/methods.{kind}", render_bars(lines, title, kind))
        if study.curve:
            files.write_bytes(f"{folder}/curve.{kind}", render_curve(lines, title, kind))
    return table
