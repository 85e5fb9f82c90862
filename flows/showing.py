"""What a run shows in Prefect's UI besides its progress: figures, pictures, links, events.

The UI is a spectator: whatever fails here costs pictures, not the run. Cases are never named: a server that many can
read is no place for identifiers.
"""

from __future__ import annotations

import base64
import io
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from rfss_core.store import Manifest
from rfss_core.store.files import Files
from tasks.events_out import dataset_resource, send_event
from tasks.run import Run
from tasks.spectator import server_answers
from tasks.summary import IntervalPart, Summary

GATE_FAILED = "rfss.gate.failed"
"""Event: a data set failed its quality gate. Payload: ``name``, ``version``, ``dice``, ``reasons``,
``mlflow_run_id``."""
DRIFT = "rfss.quality.drift"
"""Event: a run's quality or its images moved away from what they were. Same payload."""
RANKS = ("best", "median", "worst")
SIDE = 420
"""Longer side of a picture in the UI, pixels."""

log = logging.getLogger("rfss")


def show_start(run: Run) -> None:
    """Say where the run works and where it can be watched."""
    settings = run.settings
    lines = [f"Preset `{settings.preset}`, executor `{run.executor.name}`.", ""]
    if run.executor.dashboard:
        lines.append(f"- [Dask dashboard]({run.executor.dashboard}): what each worker does now")
    lines.append(f"- `rfss status {run.workspace.url}` in a terminal: chunks done, rate, time left")
    put(create_markdown_artifact, "\n".join(lines), key="rfss-run", description="Where this run can be watched")


def show_end(run: Run, summary: Summary, drifted: Sequence[str]) -> None:
    """Put figures, pictures and links into the UI, and tell automations what happened."""
    if not server_answers():
        log.warning("the Prefect server does not answer: its UI gets no figures; '%s' has them", summary.report)
        return
    put(create_table_artifact, run.throughput.table(), key="rfss-stages", description="Work of each stage in this run")
    quality = quality_table(summary.held_out_dice, summary.held_out_hd95, summary.label_fusion_dice)
    put(create_table_artifact, quality, key="rfss-held-out", description="Quality on held-out patients")
    if pictures := _pictures(run.workspace.files, summary):
        text = "Best, median and worst held-out case"
        put(create_markdown_artifact, pictures, key="rfss-overlays", description=text)
    put(create_markdown_artifact, _text(run, summary, drifted), key="rfss-summary", description="Summary of the run")
    if summary.dataset.status == "rejected":
        _tell(GATE_FAILED, summary, summary.gate)
    if drifted:
        _tell(DRIFT, summary, drifted)


def put(create: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Put one artifact into Prefect's UI, or send it one event; a server that is gone costs a line in the log.

    Args:
        create: one of Prefect's functions, for example ``create_markdown_artifact``.
        arguments: its arguments.
        options: its keywords; ``key`` names it in the log.
    """
    what = options.get("key", arguments[0])
    if not server_answers():
        log.warning("the Prefect server does not answer: its UI lacks '%s'; the run is not affected", what)
        return
    try:
        create(*arguments, **options)
    except Exception as error:  # noqa: BLE001 - whatever an HTTP client raises
        log.warning("Prefect was not told of '%s' (%s); the run is not affected", what, error)


def quality_table(
    dice: Mapping[str, IntervalPart],
    hd95: Mapping[str, IntervalPart],
    label_fusion: Mapping[str, IntervalPart] | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of a table artifact, one a class: Dice with its interval, HD95, label fusion's Dice if given."""
    return [
        {
            "class": name,
            "Dice": _round(found.mean),
            "low": _round(found.ci_low),
            "high": _round(found.ci_high),
            "patients": found.n,
            "HD95 mm": _round(hd95[name].mean),
            **({} if label_fusion is None else {"label fusion": _round(label_fusion[name].mean)}),
        }
        for name, found in dice.items()
    ]


def quarantine_counts(manifest: Manifest) -> dict[str, int]:
    """Return the number of cases that were set aside, by reason."""
    return dict(Counter(str(reason) for reason in manifest.quarantine["reason"]))


def mlflow_links(run_id: str | None) -> dict[str, str]:
    """Return addresses of a run and its report in the MLflow server that the environment names; none without one."""
    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    if run_id is None or not server.startswith(("http://", "https://")):
        return {}
    from mlflow import MlflowClient

    root = server.rstrip("/")
    experiment = MlflowClient(tracking_uri=server).get_run(run_id).info.experiment_id
    return {
        "run": f"{root}/#/experiments/{experiment}/runs/{run_id}",
        "report": f"{root}/get-artifact?path=report%2Findex.html&run_uuid={run_id}",
    }


def _pictures(files: Files, summary: Summary) -> str:
    """Return the held-out cases' pictures as a Markdown page; empty where the report has none."""
    parts = []
    for rank in RANKS:
        path = f"report/overlays/held-out-{rank}.png"
        if files.exists(path):
            parts.append(f"## {rank.capitalize()} held-out case\n\n![{rank} held-out case]({_data_url(files, path)})\n")
    if not parts:
        return ""
    intro = f"Held-out cases of {summary.dataset.name}: pseudo-label filled, expert's label dashed.\n\n"
    return intro + "\n".join(parts)


def _data_url(files: Files, path: str) -> str:
    # In the artifact itself: a browser that shows Prefect's page may not open files, and MLflow may ask for a password.
    picture = io.BytesIO()
    with Image.open(io.BytesIO(files.read_bytes(path))) as image:
        image.thumbnail((SIDE, SIDE))
        image.convert("RGB").save(picture, format="WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(picture.getvalue()).decode()}"


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _text(run: Run, summary: Summary, drifted: Sequence[str]) -> str:
    cases, decisions = summary.cases, summary.decisions
    links = _links(summary.mlflow_run_id)
    report = f"[Report]({links['report']})" if "report" in links else f"Report: `{run.workspace.url}/{summary.report}`"
    mlflow = f"[MLflow run]({links['run']})" if "run" in links else f"MLflow run `{summary.mlflow_run_id}`"
    notes = [*summary.gate, *summary.warnings, *drifted]
    return (
        f"# {summary.dataset.name}: {summary.dataset.status}\n\n"
        f"{report} · {mlflow}\n\n"
        f"{cases.unlabelled} cases labelled from {cases.support} labelled ones, {cases.held_out} held out, "
        f"{cases.quarantined} set aside; {summary.slices} slices. "
        f"{decisions.accept} accepted, {decisions.review} to review, {decisions.reject} rejected.\n\n"
        + "".join(f"- {line}\n" for line in notes)
        + f"\nVersion {summary.dataset.version}, fingerprint `{summary.fingerprint[:12]}`"
    )


def _links(run_id: str | None) -> dict[str, str]:
    try:
        return mlflow_links(run_id)
    except Exception as error:  # noqa: BLE001 - MLflow's and the network's own
        log.warning("MLflow does not answer (%s); Prefect's summary has no links to it", error)
        return {}


def _tell(event: str, summary: Summary, reasons: Sequence[str]) -> None:
    payload = {
        "name": summary.dataset.name,
        "version": summary.dataset.version,
        "dice": summary.held_out_dice["mean"].mean,
        "reasons": list(reasons),
        "mlflow_run_id": summary.mlflow_run_id,
    }
    put(send_event, event, dataset_resource(summary.dataset.name), summary.dataset.name, payload)
