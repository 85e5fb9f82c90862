"""How figures are written in tables of the terminal, of Markdown and of cards."""

from __future__ import annotations

NOT_KNOWN = "n/a"


def number(value: float | None, decimals: int = 3) -> str:
    """Return ``0.873``; ``n/a`` for None."""
    return NOT_KNOWN if value is None else f"{value:.{decimals}f}"


def interval(low: float | None, high: float | None, decimals: int = 3) -> str:
    """Return ``0.812 to 0.905``; ``n/a`` where an end is None."""
    return NOT_KNOWN if low is None or high is None else f"{low:.{decimals}f} to {high:.{decimals}f}"
