"""The report: one self-contained HTML page about a pseudo-label data set, and its pictures as PNG files."""

from __future__ import annotations

import base64
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rfss_core.quality.bootstrap import Interval
from rfss_core.quality.decision import Decision
from rfss_core.quality.gate import GateResult
from rfss_core.quality.metrics import METRICS_LIBRARY, Presence
from rfss_core.quality.picture import Picture, class_colours, render_picture
from rfss_core.quality.plot import box_plot, calibration_plot
from rfss_core.quality.prediction import QualityPrediction
from rfss_core.quality.summary import CaseMeasurement, QualitySummary
from rfss_core.settings import QualitySettings
from rfss_core.store.files import Files

PAGE = "index.html"
OVERLAYS = "overlays"
MOST_ROWS = 500
"""Longer tables are cut, and say so."""


@dataclass(frozen=True)
class ModelFact:
    """A model that took part."""

    role: str
    """``embedding`` or ``segmentation``."""
    name: str
    sha256: str
    trained: bool
    """False for weights drawn from a seed: the page warns."""


@dataclass(frozen=True)
class Comparison:
    """A held-out case: its prediction against the expert, beside the supports that were retrieved for it."""

    rank: str
    """``best``, ``median`` or ``worst`` (see :func:`typical_cases`)."""
    measurement: CaseMeasurement
    picture: Picture
    supports: Sequence[Picture] = ()
    """The retrieved support slices with their expert's label maps, nearest first."""


@dataclass(frozen=True)
class QuarantineRow:
    """A case that was set aside."""

    name: str
    reason: str
    message: str


@dataclass(frozen=True)
class ReportContent:
    """All that the report shows. Cases are named as a reader knows them; nothing is read from elsewhere."""

    dataset: str
    """Name of the data set."""
    version: str | None
    """Its version, where it has one."""
    digest: str
    """Digest of its manifest."""
    fingerprint: str
    preset: str
    k: int
    classes: Mapping[int, str]
    """Label value to name."""
    counts: Mapping[str, int]
    """Numbers of cases and slices by what they are; ``labelled``, ``unlabelled``, ``quarantined`` ..."""
    settings: QualitySettings
    """Thresholds of the gate and of decisions."""
    gate: GateResult
    summary: QualitySummary
    measurements: Sequence[CaseMeasurement]
    prediction: QualityPrediction
    decisions: Mapping[str, Decision]
    """Decision of each pseudo-labelled case; its keys are those of ``prediction.predicted``."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What to call a case id, in measurements, prediction and decisions; default: the id."""
    fusion: QualitySummary | None = None
    """The same held-out cases labelled by label fusion: the floor."""
    comparisons: Sequence[Comparison] = ()
    unlabelled: Sequence[Picture] = ()
    """Pseudo-labels of unlabelled cases."""
    quarantine: Sequence[QuarantineRow] = ()
    models: Sequence[ModelFact] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The run's settings as plain JSON types."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of software that took part."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall seconds by stage, in order."""
    warnings: Sequence[str] = ()
    created: str = ""
    """When, as a text for readers."""


def typical_cases(measurements: Sequence[CaseMeasurement]) -> list[tuple[str, CaseMeasurement]]:
    """Return the best, the median and the worst case by mean Dice, each once; fewer where there are fewer cases."""
    ordered = sorted(measurements, key=lambda m: (-m.dice, m.case))
    if not ordered:
        return []
    picks = {"best": 0, "median": len(ordered) // 2, "worst": len(ordered) - 1}
    chosen: dict[int, str] = {}
    for rank in ("best", "worst", "median"):
        chosen.setdefault(picks[rank], rank)
    return [(chosen[index], ordered[index]) for index in sorted(chosen)]


def write_report(content: ReportContent, folder: str | Path) -> Path:
    """Write the report, replacing an earlier one.

    Args:
        content: what to show.
        folder: folder or fsspec URL; gets ``index.html`` and ``overlays/*.png``.

    Returns:
        Path of the page, below ``folder`` as it was given.

    Raises:
        InputError: a picture's arrays do not fit each other.
        StoreError: the folder cannot be written.
    """
    pages = render_report(content)
    files = Files(folder)
    files.remove_tree(OVERLAYS)
    for name, data in sorted(pages.items()):
        files.write_bytes(name, data)
    return Path(folder) / PAGE


def render_report(content: ReportContent) -> dict[str, bytes]:
    """Return the report's files by relative path: ``index.html`` and ``overlays/*.png``.

    The page needs no other file and no network: pictures, plots and styles are in it, and its content security policy
    forbids everything else.

    Raises:
        InputError: a picture's arrays do not fit each other.
    """
    album = _Album(class_colours(list(content.classes)))
    names = {case: content.names.get(case, case) for case in content.decisions}
    held_out = [
        {
            "rank": item.rank,
            "name": content.names.get(item.measurement.case, item.measurement.case),
            "patient": item.measurement.patient,
            "dice": item.measurement.dice,
            "metrics": item.measurement.metrics,
            "figure": album.add(item.picture, f"held-out-{item.rank}"),
            "supports": [
                album.add(support, f"held-out-{item.rank}-support-{number}", size=200)
                for number, support in enumerate(item.supports, 1)
            ],
        }
        for item in content.comparisons
    ]
    unlabelled = [album.add(shown, f"unlabelled-{number}") for number, shown in enumerate(content.unlabelled, 1)]
    environment = Environment(
        loader=PackageLoader("rfss_core.quality"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(figures=_figures, interval=_interval, duration=_duration)
    page = environment.get_template("report.html").render(
        content=content,
        colours={content.classes[value]: colour for value, colour in album.colours.items()},
        held_out=held_out,
        unlabelled=unlabelled,
        box=_box(content, album.colours),
        # The plot's own texts are escaped by matplotlib's SVG writer.
        calibration=Markup(calibration_plot(content.prediction.points)) if content.prediction.points else None,  # noqa: S704
        decisions=Counter(content.decisions.values()),
        queue=_queue(content, names),
        most_rows=MOST_ROWS,
        library=METRICS_LIBRARY,
        parameters=yaml.safe_dump(dict(content.parameters), sort_keys=False, allow_unicode=True),
        empties=_empties(content),
    )
    return {PAGE: page.encode(), **album.files}


class _Album:
    """Pictures of the page, each drawn once: as a file and as a data URL."""

    def __init__(self, colours: dict[int, str]) -> None:
        self.colours = colours
        self.files: dict[str, bytes] = {}

    def add(self, picture: Picture, name: str, size: int = 420) -> dict[str, str]:
        data = render_picture(picture, self.colours, size)
        path = f"{OVERLAYS}/{re.sub(r'[^A-Za-z0-9-]+', '-', name)}.png"
        self.files[path] = data
        return {"src": f"data:image/png;base64,{base64.b64encode(data).decode()}", "caption": picture.caption}


def _box(content: ReportContent, colours: dict[int, str]) -> Markup | None:
    if not content.measurements:
        return None
    dice = {
        content.classes[value]: [m.dice for case in content.measurements for m in case.metrics if m.value == value]
        for value in sorted(content.classes)
    }
    named = {content.classes[value]: colour for value, colour in colours.items()}
    # The plot's own texts are escaped by matplotlib's SVG writer.
    return Markup(box_plot(dice, named, content.settings.min_dice))  # noqa: S704


def _queue(content: ReportContent, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return one row a pseudo-labelled case: those to review first, the least certain first among them."""
    order = {"review": 0, "reject": 1, "accept": 2}
    rows = [
        {
            "name": names[case],
            "decision": decision,
            "predicted": content.prediction.predicted.get(case),
            "lower": content.prediction.lower.get(case),
        }
        for case, decision in content.decisions.items()
    ]

    def urgency(row: dict[str, Any]) -> tuple[int, float, str]:
        predicted = row["predicted"]
        return order[row["decision"]], -1.0 if predicted is None else predicted, row["name"]

    return sorted(rows, key=urgency)


def _empties(content: ReportContent) -> list[str]:
    """Return one sentence a kind of empty mask among the held-out cases."""
    counts = Counter(metric.presence for case in content.measurements for metric in case.metrics)
    texts: dict[Presence, str] = {
        "both_empty": "class absent from truth and prediction (Dice 1, HD95 0)",
        "missed": "class missed altogether (Dice 0, HD95 the volume's diagonal)",
        "spurious": "class predicted where there is none (Dice 0, HD95 the volume's diagonal)",
    }
    return [f"{counts[kind]} × {text}" for kind, text in texts.items() if counts[kind]]


def _figures(value: float | None, decimals: int = 3) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{decimals}f}"


def _interval(interval: Interval, decimals: int = 3) -> str:
    return f"{_figures(interval.ci_low, decimals)} to {_figures(interval.ci_high, decimals)}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return (
        f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
        if seconds >= 3600
        else f"{seconds / 60:.1f} min"
    )
