"""The report: one self-contained HTML page about a pseudo-label data set, and its pictures as PNG files."""

from __future__ import annotations

import base64
import io
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from rfss_core.quality.bootstrap import Interval
from rfss_core.quality.content import QueueRow, ReportContent
from rfss_core.quality.metrics import METRICS_LIBRARY, ClassMetric, Presence
from rfss_core.quality.picture import Picture, class_colours, render_picture
from rfss_core.quality.plot import acceptance_plot, box_plot, calibration_plot
from rfss_core.quality.summary import CaseMeasurement
from rfss_core.store.files import Files

PAGE = "index.html"
OVERLAYS = "overlays"
MOST_ROWS = 500
"""Longer tables are cut, and say so."""
HEAD_ROWS = 12
"""Rows of the review queue that are open from the start."""


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
    forbids everything else. Its size does not grow with the number of cases beyond :data:`MOST_ROWS` table rows.

    Raises:
        InputError: a picture's arrays do not fit each other.
    """
    album = _Album(class_colours(list(content.classes)))
    queue = content.queue or _plain_queue(content)
    held_out = [
        {
            "rank": item.rank,
            "name": content.names.get(item.measurement.case, item.measurement.case),
            "measurement": item.measurement,
            "figures": album.views(item.picture, item.worst, f"held-out-{item.rank}"),
            "supports": [
                album.add(
                    support, f"held-out-{item.rank}-support-{number}", "a support slice with its expert label", 280
                )
                for number, support in enumerate(item.supports, 1)
            ],
        }
        for item in content.comparisons
    ]
    rows = [
        {
            "rank": rank,
            "name": content.names.get(row.case, row.case),
            "row": row,
            "figure": None if row.picture is None else album.add(row.picture, f"queue-{rank}", _PSEUDO),
        }
        for rank, row in enumerate(queue, 1)
    ]
    environment = Environment(
        loader=PackageLoader("rfss_core.quality"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(figures=_figures, interval=_interval, duration=_duration)
    page = environment.get_template("report.html").render(
        content=content,
        colours={content.classes[value]: colour for value, colour in album.colours.items()},
        held_out=held_out,
        unlabelled=[album.add(shown, f"unlabelled-{n}", _PSEUDO) for n, shown in enumerate(content.unlabelled, 1)],
        plots=_plots(content, album.colours),
        decisions=Counter(content.decisions.values()),
        queue=rows,
        most_rows=MOST_ROWS,
        head_rows=HEAD_ROWS,
        library=METRICS_LIBRARY,
        parameters=yaml.safe_dump(dict(content.parameters), sort_keys=False, allow_unicode=True),
        empties=_empties(content),
    )
    return {PAGE: page.encode(), **album.files}


_PSEUDO = "with its pseudo-label as filled contours"
_COMPARED = "with the pseudo-label as filled and the expert's label as dashed contours"


class _Album:
    """Pictures of the page, each drawn once: as a PNG file, and smaller, as WebP, in a data URL."""

    def __init__(self, colours: dict[int, str]) -> None:
        self.colours = colours
        self.files: dict[str, bytes] = {}

    def add(self, picture: Picture, name: str, shows: str, size: int = 420) -> dict[str, str]:
        data = render_picture(picture, self.colours, size)
        self.files[f"{OVERLAYS}/{re.sub(r'[^A-Za-z0-9-]+', '-', name)}.png"] = data
        small = io.BytesIO()
        Image.open(io.BytesIO(data)).convert("RGB").save(small, format="WEBP", quality=82, method=4)
        source = f"data:image/webp;base64,{base64.b64encode(small.getvalue()).decode()}"
        return {"src": source, "caption": picture.caption, "alt": f"{picture.caption}: {shows}"}

    def views(self, picture: Picture, worst: Picture | None, name: str) -> list[dict[str, str]]:
        """Return the slice alone, the same with contours, and the slice with the most wrong pixels."""
        bare = Picture(picture.image, "the image alone", spacing=picture.spacing)
        found = [self.add(bare, f"{name}-image", picture.caption), self.add(picture, name, _COMPARED)]
        return found if worst is None else [*found, self.add(worst, f"{name}-worst", _COMPARED)]


def _plots(content: ReportContent, colours: dict[int, str]) -> dict[str, Markup]:
    """Return the plots that there are data for; their own texts are escaped by matplotlib's SVG writer."""
    found = {}
    if content.measurements:
        named = {content.classes[value]: colour for value, colour in colours.items()}
        for title, attribute, threshold in (("Dice", "dice", content.settings.min_dice), ("HD95 (mm)", "hd95", None)):
            values = {content.classes[value]: _values(content, value, attribute) for value in sorted(content.classes)}
            found[attribute] = box_plot(values, named, title, threshold)
    if content.prediction.points:
        found["calibration"] = calibration_plot(content.prediction.points, content.settings)
    # One point is no curve: without lower bounds either all are accepted or none.
    if len(content.acceptance) > 1:
        found["acceptance"] = acceptance_plot(content.acceptance, content.settings)
    return {name: Markup(svg) for name, svg in found.items()}  # noqa: S704


def _values(content: ReportContent, value: int, attribute: str) -> list[float]:
    metrics: list[ClassMetric] = [m for case in content.measurements for m in case.metrics if m.value == value]
    return [float(getattr(metric, attribute)) for metric in metrics]


def _plain_queue(content: ReportContent) -> list[QueueRow]:
    """Return the decisions as a queue: those to review first, the lowest prediction first among them."""
    order = {"review": 0, "reject": 1, "accept": 2}
    rows = [
        QueueRow(case, decision, content.prediction.predicted.get(case), content.prediction.lower.get(case))
        for case, decision in content.decisions.items()
    ]
    return sorted(
        rows,
        key=lambda row: (order[row.decision], -1.0 if row.predicted is None else row.predicted,
                         content.names.get(row.case, row.case)),
    )  # fmt: skip


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
