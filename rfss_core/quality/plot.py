"""Plots of the report, as inline SVG that follows the page's light or dark colours."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from rfss_core.quality.prediction import CalibrationPoint

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


def box_plot(dice: Mapping[str, Sequence[float]], colours: Mapping[str, str], threshold: float) -> str:
    """Draw the Dice of held-out cases by class: box, whiskers (1.5 interquartile ranges) and every case as a dot.

    Args:
        dice: Dice of each held-out case, by class name, in order from top to bottom.
        colours: colour of each class name.
        threshold: the gate, drawn as a vertical line.

    Returns:
        An ``<svg>`` element.
    """
    names = list(dice)
    with _style():
        figure, axes = _figure(5.6, 0.9 + 0.55 * len(names))
        axes.axvline(threshold, color=_MUTED, linewidth=1, linestyle=(0, (3, 3)))
        for row, name in enumerate(names):
            values = np.asarray(dice[name], dtype=np.float64)
            if not values.size:
                continue
            colour = colours[name]
            axes.boxplot(
                [values], positions=[row], orientation="horizontal", widths=0.5, showfliers=False, patch_artist=True,
                boxprops={"facecolor": colour, "alpha": 0.3, "edgecolor": _INK}, whiskerprops={"color": _INK},
                capprops={"color": _INK}, medianprops={"color": _INK, "linewidth": 1.6}, manage_ticks=False,
            )  # fmt: skip
            # Dots are spread by rank, so that the same data give the same plot.
            spread = (np.argsort(np.argsort(values)) % 5 - 2) * 0.07
            axes.plot(values, row + spread, "o", color=colour, markersize=3, markeredgecolor=_INK, markeredgewidth=0.3)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)))
        axes.set_yticklabels(names, parse_math=False)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("Dice (dashed: the gate)")
        axes.grid(axis="x")
        return _svg(figure, f"Box plot of Dice on held-out cases for {', '.join(names)}")


def calibration_plot(points: Sequence[CalibrationPoint]) -> str:
    """Draw true against predicted Dice of the held-out cases, with the lower bounds as ticks.

    Args:
        points: cross-validated predictions.

    Returns:
        An ``<svg>`` element.
    """
    with _style():
        figure, axes = _figure(4.2, 3.6)
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=(0, (3, 3)))
        for point in points:
            axes.plot([point.dice, point.dice], [point.lower, point.predicted], color=_MUTED, linewidth=0.8, alpha=0.6)
        axes.plot([p.dice for p in points], [p.lower for p in points], "_", color=_MUTED, markersize=5)
        axes.plot(
            [p.dice for p in points], [p.predicted for p in points], "o", color="#3B82C4", markersize=4,
            markeredgecolor=_INK, markeredgewidth=0.3,
        )  # fmt: skip
        low = min([0.9, *(min(p.dice, p.predicted, p.lower) for p in points)])
        axes.set_xlim(max(low - 0.05, -0.02), 1.02)
        axes.set_ylim(max(low - 0.05, -0.02), 1.02)
        axes.set_xlabel("true Dice")
        axes.set_ylabel("predicted Dice (tick: lower bound)")
        axes.grid(visible=True)
        return _svg(figure, "Predicted against true Dice on held-out cases")


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
