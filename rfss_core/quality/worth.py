"""What each quality signal is worth: alone, and to the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rfss_core.quality.conformal import Folds
from rfss_core.quality.regression import Floats


@dataclass(frozen=True)
class SignalWorth:
    """One signal's worth; every figure by cross-validation over the held-out patients."""

    name: str
    """See :data:`rfss_core.quality.signals.SIGNALS`."""
    cases: int
    """Held-out cases to which it applies."""
    correlation: float | None
    """Spearman's rank correlation of the signal itself with Dice; negative where more means worse."""
    mae_alone: float
    """Mean absolute error of Dice predicted from this signal only."""
    spearman_alone: float | None
    """Rank correlation of that prediction with Dice."""
    mae_without: float | None
    """Mean absolute error from all the others; larger than with it where it helps. None: it is the only one."""
    spearman_without: float | None
    """Rank correlation of that prediction."""

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain JSON types."""
        return asdict(self)


def signal_worth(names: Sequence[str], features: Floats, dice: Floats, folds: Folds) -> tuple[SignalWorth, ...]:
    """Measure what each signal is worth.

    Args:
        names: of the F signals.
        features: [n, F]; NaN where a signal does not apply.
        dice: [n].
        folds: of patients.

    Returns:
        One row a signal, the least error alone first.
    """
    share = folds.weights / folds.weights.sum()

    def tried(columns: list[int]) -> tuple[float, float | None]:
        found = folds.cross_validated(features[:, columns], dice)
        return float(share @ np.abs(found - dice)), spearman(found, dice)

    rows = []
    for place, name in enumerate(names):
        known = np.isfinite(features[:, place])
        alone, rank = tried([place])
        others = [column for column in range(len(names)) if column != place]
        without, rank_without = tried(others) if others else (None, None)
        raw = spearman(features[known, place], dice[known])
        rows.append(SignalWorth(name, int(known.sum()), raw, alone, rank, without, rank_without))
    return tuple(sorted(rows, key=lambda row: (row.mae_alone, row.name)))


def spearman(first: Floats, second: Floats) -> float | None:
    """Return Spearman's rank correlation, None where one side does not vary or there are fewer than 3 pairs."""
    if len(first) < 3 or np.ptp(first) < 1e-12 or np.ptp(second) < 1e-12:
        return None
    from scipy.stats import spearmanr

    result: Any = spearmanr(first, second)
    return float(result.statistic)
