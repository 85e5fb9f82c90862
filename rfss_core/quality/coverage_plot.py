"""Plot of coverage against the number of chosen slices."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rfss_core.retrieval import Coverage

_CHOSEN, _RANDOM = "#3B82C4", "#808080"


def render_coverage(curve: Sequence[Coverage], random_curve: Sequence[Coverage], objective: str) -> bytes:
    """Draw mean, 95th percentile and maximum of the distance to the nearest chosen slice, beside random choices.

    Args:
        curve: coverage by the first chosen slices.
        random_curve: the same by random choices.
        objective: what the choice keeps small, for the legend.

    Returns:
        A PNG file.
    """
    # Without pyplot nothing is global, so plots can be drawn in any thread.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    figures = (("maximum", ":"), ("p95", "--"), ("mean", "-"))
    for points, colour, who in ((random_curve, _RANDOM, "random"), (curve, _CHOSEN, f"chosen ({objective})")):
        for name, style in figures:
            axes.plot(
                [point.chosen for point in points],
                [getattr(point, name) for point in points],
                style,
                color=colour,
                marker="." if len(points) == 1 else None,
                label=f"{who}, {name}",
            )
    axes.set_xlabel("slices chosen")
    axes.set_ylabel("distance to the nearest chosen slice")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
