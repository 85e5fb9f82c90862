"""Plots of a study: Dice over k with intervals (Figure 4 of the paper), and a bar a method."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Literal

from rfss_core.study.table import Line

_COLOURS = ("#3B82C4", "#C4563B", "#2E8B57", "#8A5CC4", "#B8860B", "#5A6B7B", "#C43B8E", "#3BA7C4")


def render_curve(lines: Sequence[Line], title: str, kind: Literal["png", "svg"]) -> bytes:
    """Draw Dice over k for each class; bands are 95 % intervals over test patients.

    Args:
        lines: the table; those of one k alone, or without retrieval, are left out.
        title: heading.
        kind: file format.

    Returns:
        The file.
    """
    figure, axes = _axes((6.4, 4.4))
    curves: dict[str, list[Line]] = {}
    for line in lines:
        curves.setdefault(line.label.rsplit(", k = ", 1)[0], []).append(line)
    curves = {name: sorted(own, key=lambda line: line.k) for name, own in curves.items() if len(own) > 1}
    styles = ("-", "--", ":", "-.")
    ticks: set[int] = set()
    for style, (name, own) in zip(styles, curves.items(), strict=False):
        ks = [line.k for line in own]
        ticks.update(ks)
        for colour, column in zip(_COLOURS, own[0].dice, strict=False):
            means = [line.dice[column].mean for line in own]
            if any(mean is None for mean in means):
                continue
            width = 2.2 if column == "mean" else 1.2
            label = column if len(curves) == 1 else f"{name}, {column}"
            axes.plot(ks, means, style, color=colour, marker="o", markersize=3.5, linewidth=width, label=label)
            ends = [(line.interval[column].ci_low, line.interval[column].ci_high) for line in own]
            if all(low is not None and high is not None for low, high in ends):
                axes.fill_between(ks, [low for low, _ in ends], [high for _, high in ends], color=colour, alpha=0.1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks), [str(k) for k in sorted(ticks)])
    axes.minorticks_off()
    axes.set_xlabel("retrieved support slices, k")
    axes.set_ylabel("Dice (band: 95 % interval over patients)")
    axes.set_ylim(0, 1)
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    return _file(figure, kind)


def render_bars(lines: Sequence[Line], title: str, kind: Literal["png", "svg"]) -> bytes:
    """Draw the mean Dice of each method with its 95 % interval over test patients, and a dot for each class.

    Args:
        lines: the table.
        title: heading.
        kind: file format.

    Returns:
        The file.
    """
    figure, axes = _axes((7.0, 1.2 + 0.36 * max(1, len(lines))))
    places = list(range(len(lines)))
    classes = [name for name in (lines[0].dice if lines else {}) if name != "mean"]
    axes.barh(places, [line.dice["mean"].mean or 0.0 for line in lines], color="#C9D9E8", height=0.62)
    for place, line in zip(places, lines, strict=True):
        interval = line.interval["mean"]
        if interval.ci_low is not None and interval.ci_high is not None:
            axes.plot([interval.ci_low, interval.ci_high], [place, place], color="#1F3A56", linewidth=1.4)
    for colour, name in zip(_COLOURS[1:], classes, strict=False):
        known = [(line.dice[name].mean, place) for place, line in zip(places, lines, strict=True)]
        known = [(value, place) for value, place in known if value is not None]
        axes.plot([x for x, _ in known], [y for _, y in known], "o", color=colour, markersize=4, label=name)
    axes.set_yticks(places, [line.label for line in lines], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("Dice (bar: mean; line: its 95 % interval over patients)")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return _file(figure, kind)


def _axes(size: tuple[float, float]) -> tuple[Any, Any]:
    # Without pyplot nothing is global, so plots can be drawn in any thread.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(visible=True, alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _file(figure: Any, kind: Literal["png", "svg"]) -> bytes:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    # A fixed salt and no date: same figures, same bytes.
    with rc_context({"svg.hashsalt": "rfss"}):
        figure.savefig(buffer, format=kind, metadata={"Software": None} if kind == "png" else {"Date": None})
    return buffer.getvalue()
