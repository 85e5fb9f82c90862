"""Class-wise support sets: for every class its own supports among a query's neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Choice = list[list[int]]
"""For each class, the positions of a query's supports."""


def choose_supports(
    candidates: Sequence[int], has_class: Callable[[int], bool], count: int, absent_share: float
) -> list[int]:
    """Choose the supports of one query and class.

    The nearest candidates with the class, and the nearest without it as negative evidence; where one kind runs short
    the other fills up.

    Args:
        candidates: positions in the support set, nearest first.
        has_class: whether a support's mask holds the class.
        count: supports to choose, at most.
        absent_share: share of them, from 0 to 1, that should lack the class.

    Returns:
        At most ``count`` of the candidates, in their order.
    """
    present = [index for index in candidates if has_class(index)]
    absent = [index for index in candidates if not has_class(index)]
    negatives = min(len(absent), max(round(count * absent_share), count - len(present)))
    chosen = {*present[: count - negatives], *absent[:negatives]}
    return [index for index in candidates if index in chosen]
