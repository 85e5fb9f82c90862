"""The run's report: what stage register shows of a run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import numpy.typing as npt

from rfss_core.code import code_version
from rfss_core.quality import (
    CaseMeasurement,
    Comparison,
    ModelFact,
    Picture,
    QuarantineRow,
    QueueRow,
    ReportContent,
    largest_slice,
    typical_cases,
    write_report,
)
from rfss_core.retrieval import SupportSet
from rfss_core.store import Manifest
from tasks.index import SupportIndex, open_support
from tasks.quality import read_mask
from tasks.quality_outcome import QualityOutcome
from tasks.queue import ReviewQueue
from tasks.run import Run
from tasks.segment import STAGE as SEGMENT_STAGE
from tasks.segment import Masks
from tasks.summary import UNTRAINED, Summary

FOLDER = "report"
SUPPORTS_SHOWN = 4
UNLABELLED_SHOWN = 6
QUEUE_SHOWN = 6


def write_run_report(
    run: Run,
    manifest: Manifest,
    index: SupportIndex,
    masks: Masks,
    quality: QualityOutcome,
    summary: Summary,
    queue: ReviewQueue,
) -> None:
    """Write ``report/index.html`` and its overlay pictures into the workspace."""
    names = {str(row.case_id): str(row.name) for row in manifest.cases[["case_id", "name"]].itertuples(index=False)}
    gallery = _Gallery(run, index, masks, names)
    others = set(quality.decisions) - {row.case_id for row in queue.cases[:QUEUE_SHOWN]}
    content = ReportContent(
        dataset=summary.dataset.name,
        version=summary.dataset.version,
        digest=summary.dataset.digest,
        fingerprint=summary.fingerprint,
        preset=summary.preset,
        k=summary.k,
        classes=dict(index.classes),
        counts={**summary.cases.model_dump(), "slices": summary.slices, "support slices": index.n_slices},
        settings=run.settings.quality,
        gate=quality.gate,
        summary=quality.summary,
        fusion=quality.fusion_summary,
        measurements=quality.measurements,
        prediction=quality.prediction,
        decisions=quality.decisions,
        names=names,
        comparisons=[gallery.comparison(rank, measured) for rank, measured in typical_cases(quality.measurements)],
        queue=[
            QueueRow(
                row.case_id,
                quality.decisions[row.case_id],
                row.predicted_dice,
                row.lower_bound,
                row.expected_gain,
                row.reason,
                gallery.pseudo_label(row.case_id) if row.rank <= QUEUE_SHOWN else None,
            )
            for row in queue.cases
        ],
        by_class=quality.by_class,
        acceptance=quality.acceptance,
        review_command=f"rfss review export {shlex.quote(run.workspace.url)} --out review --n 10",
        unlabelled=[gallery.pseudo_label(case_id) for case_id in _spread(sorted(others), UNLABELLED_SHOWN)],
        quarantine=[
            QuarantineRow(str(row.name), str(row.reason), str(row.message))
            for row in manifest.quarantine[["name", "reason", "message"]].itertuples(index=False)
        ],
        models=[ModelFact(role, model.name, model.digest, model.trained) for role, model in summary.models.items()],
        parameters=run.settings.model_dump(mode="json"),
        versions={
            "rfss": code_version(),
            **{name: version(name) for name in ("torch", "transformers", "monai", "prefect", "zarr")},
        },
        seconds=summary.seconds,
        # The page has a warning of its own about untrained models.
        warnings=[text for text in summary.warnings if not text.startswith(UNTRAINED)],
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    write_report(content, f"{run.workspace.url}/{FOLDER}")


class _Gallery:
    """Pictures of a run's cases."""

    def __init__(self, run: Run, index: SupportIndex, masks: Masks, names: dict[str, str]) -> None:
        self._run = run
        self._masks = masks
        self._names = names
        self._chunk_of = {case_id: chunk for case_id, chunk, _ in masks.cases()}
        self._support: SupportSet = open_support(run.workspace.url, index)
        self._row_of = {name: row for row, name in enumerate(self._support.ids)}

    def comparison(self, rank: str, measurement: CaseMeasurement) -> Comparison:
        """Show the held-out slice with most foreground, its supports, and the slice with the most wrong pixels."""
        case_id = measurement.case
        case = self._run.workspace.case(case_id)
        truth = case.read_labels()
        z = largest_slice(truth)
        labels = self._labels(case_id)
        wrong = int(np.count_nonzero(labels != truth, axis=(1, 2)).argmax())
        worst = None if wrong == z else self._picture(case_id, wrong, labels, truth[wrong], ", the most wrong pixels")
        picture = self._picture(case_id, z, labels, truth[z])
        return Comparison(rank, measurement, picture, worst, self._supports(case_id, z))

    def pseudo_label(self, case_id: str) -> Picture:
        """Show the slice with most foreground of an unlabelled case."""
        labels = self._labels(case_id)
        return self._picture(case_id, largest_slice(labels), labels, None)

    def _labels(self, case_id: str) -> npt.NDArray[np.uint8]:
        return read_mask(self._run, self._masks, self._chunk_of[case_id], case_id, "labels")

    def _picture(
        self,
        case_id: str,
        z: int,
        labels: npt.NDArray[np.uint8],
        truth: npt.NDArray[np.uint8] | None,
        note: str = "",
    ) -> Picture:
        case = self._run.workspace.case(case_id)
        caption = f"{self._names[case_id]}, slice {z + 1} of {len(labels)}{note}"
        return Picture(case.read_slices(z, z + 1)[0], caption, labels[z], truth, case.spacing[1:])

    def _supports(self, case_id: str, z: int) -> list[Picture]:
        store = self._run.workspace.stage(SEGMENT_STAGE, self._masks.key)
        table = store.read_table(self._chunk_of[case_id], "slices")
        row = table[(table["case_id"] == case_id) & (table["slice"] == z)].iloc[0]
        shown = list(zip(row["support_ids"], row["distances"], strict=True))[:SUPPORTS_SHOWN]
        pictures = []
        for name, distance in shown:
            item = self._row_of[name]
            spacing = self._run.workspace.case(name.rsplit(":", 1)[0]).spacing[1:]
            pictures.append(
                Picture(
                    self._support.image(item),
                    f"{name}, distance {distance:.3f}",
                    truth=self._support.mask(item),
                    spacing=spacing,
                )
            )
        return pictures


def _spread(items: Sequence[str], count: int) -> list[str]:
    """Return at most ``count`` items, evenly spread over the sequence."""
    if len(items) <= count:
        return list(items)
    return [items[round(position)] for position in np.linspace(0, len(items) - 1, count)]
