"""Plots of the report, as inline SVG that follows the page's light or dark colours."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from rfss_core.quality.decision import AcceptancePoint
from rfss_core.quality.prediction import CalibrationPoint
from rfss_core.settings import QualitySettings

MOST_DOTS = 400
"""Of a class, or of a plot of cases: more would only make the page large."""
_BLUE, _ORANGE = "#3B82C4", "#D9822B"

# Matplotlib wants fixed colours; these stand for the page's own, which CSS chooses.
_INK, _MUTED, _GRID = "#010203", "#040506", "#070809"
_PAGE = {_INK: "var(--ink)", _MUTED: "var(--muted)", _GRID: "var(--line)"}
_RC: Any = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _MUTED,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def box_plot(
    values: Mapping[str, Sequence[float]], colours: Mapping[str, str], title: str, threshold: float | None = None
) -> str:
    """Draw a metric of held-out cases by class: box, whiskers (1.5 interquartile ranges) and the cases as dots.

    Args:
        values: of each held-out case, by class name, in order from top to bottom.
        colours: colour of each class name.
        title: name of the metric; values of ``Dice`` run from 0 to 1.
        threshold: the gate, drawn as a vertical line.

    Returns:
        An ``<svg>`` element.
    """
    names = list(values)
    with _style():
        figure, axes = _figure(5.6, 0.9 + 0.55 * len(names))
        if threshold is not None:
            axes.axvline(threshold, color=_MUTED, linewidth=1, linestyle=(0, (3, 3)))
        for row, name in enumerate(names):
            found = np.asarray(values[name], dtype=np.float64)
            found = np.sort(found[np.isfinite(found)])
            if not found.size:
                continue
            colour = colours[name]
            axes.boxplot(
                [found], positions=[row], orientation="horizontal", widths=0.5, showfliers=False, patch_artist=True,
                boxprops={"facecolor": colour, "alpha": 0.3, "edgecolor": _INK}, whiskerprops={"color": _INK},
                capprops={"color": _INK}, medianprops={"color": _INK, "linewidth": 1.6}, manage_ticks=False,
            )  # fmt: skip
            shown = found[_spread(found.size, MOST_DOTS)]
            # Dots are spread by rank, so that the same data give the same plot.
            spread = (np.arange(shown.size) % 5 - 2) * 0.07
            axes.plot(shown, row + spread, "o", color=colour, markersize=3, markeredgecolor=_INK, markeredgewidth=0.3)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)))
        axes.set_yticklabels(names, parse_math=False)
        if title == "Dice":
            axes.set_xlim(-0.02, 1.02)
        else:
            axes.set_xlim(left=0)
        axes.set_xlabel(title if threshold is None else f"{title} (dashed: the gate)")
        axes.grid(axis="x")
        return _svg(figure, f"Box plot of {title} on held-out cases for {', '.join(names)}")


def calibration_plot(points: Sequence[CalibrationPoint], settings: QualitySettings) -> str:
    """Draw true against predicted Dice of the held-out cases, with the lower bounds as ticks.

    Args:
        points: cross-validated predictions.
        settings: the least Dice of accepted and of reviewed cases, drawn as lines.

    Returns:
        An ``<svg>`` element.
    """
    ordered = sorted(points, key=lambda point: (point.predicted, point.case))
    shown = [ordered[row] for row in _spread(len(ordered), MOST_DOTS)]
    with _style():
        figure, axes = _figure(4.2, 3.6)
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=(0, (3, 3)))
        for name, value in (("accept", settings.accept_dice), ("reject", settings.reject_dice)):
            axes.axhline(value, color=_MUTED, linewidth=0.7, linestyle=(0, (1, 2)))
            axes.text(1.015, value, name, fontsize=7, va="bottom", ha="right", color=_MUTED)
        for point in shown:
            axes.plot([point.dice, point.dice], [point.lower, point.predicted], color=_MUTED, linewidth=0.8, alpha=0.6)
        axes.plot([p.dice for p in shown], [p.lower for p in shown], "_", color=_MUTED, markersize=5)
        axes.plot(
            [p.dice for p in shown], [p.predicted for p in shown], "o", color=_BLUE, markersize=4,
            markeredgecolor=_INK, markeredgewidth=0.3,
        )  # fmt: skip
        low = min([0.9, *(min(p.dice, p.predicted, p.lower) for p in shown)])
        axes.set_xlim(max(low - 0.05, -0.02), 1.02)
        axes.set_ylim(max(low - 0.05, -0.02), 1.02)
        axes.set_xlabel("true Dice")
        axes.set_ylabel("predicted Dice (tick: lower bound)")
        axes.grid(visible=True)
        return _svg(figure, "Predicted against true Dice on held-out cases")


def acceptance_plot(points: Sequence[AcceptancePoint], settings: QualitySettings) -> str:
    """Draw how good the accepted held-out cases are, the more of them are accepted.

    Args:
        points: coverage against quality, see :func:`rfss_core.quality.decision.acceptance_curve`.
        settings: ``accept_dice``, and ``confidence``, drawn as a line.

    Returns:
        An ``<svg>`` element.
    """
    shown = [points[row] for row in _spread(len(points), MOST_DOTS)]
    marker = "o" if len(shown) < 60 else None
    with _style():
        figure, axes = _figure(4.2, 3.6)
        share = [point.accepted for point in shown]
        axes.axhline(settings.confidence, color=_MUTED, linewidth=0.7, linestyle=(0, (1, 2)))
        axes.plot(share, [p.dice for p in shown], color=_BLUE, marker=marker, markersize=3, label="their mean Dice")
        axes.plot(
            share, [p.reached for p in shown], color=_ORANGE, marker=marker, markersize=3, linestyle="--",
            label=f"share with Dice of at least {settings.accept_dice:g}",
        )  # fmt: skip
        axes.set_xlim(0, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("share of held-out cases accepted, the surest first")
        axes.grid(visible=True)
        axes.legend(frameon=False, fontsize=8, loc="lower left")
        return _svg(figure, "Mean Dice of accepted cases against the share that is accepted")


def _spread(size: int, most: int) -> list[int]:
    """Return at most so many rows, evenly spread from the first to the last."""
    return sorted({round(row) for row in np.linspace(0, size - 1, min(size, most)).tolist()})


@contextmanager
def _style() -> Iterator[None]:
    """Page style, and no complaint about letters that only the reader's own fonts have."""
    import matplotlib as mpl

    with warnings.catch_warnings(), mpl.rc_context(_RC):
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        yield


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any, title: str) -> str:
    import matplotlib as mpl
    from markupsafe import escape

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # Clip paths are named by this salt: different on the same page, the same in every run.
    with mpl.rc_context({"svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text[text.index("<svg") :])
    for colour, variable in _PAGE.items():
        text = text.replace(colour, variable)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
