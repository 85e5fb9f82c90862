"""Public data sets in the layouts that their publishers ship: folder in, ``images`` and ``labels`` out."""

from __future__ import annotations

from rfss_core.datasets.layouts.acdc import Acdc
from rfss_core.datasets.layouts.btcv import Btcv
from rfss_core.datasets.layouts.busi import Busi
from rfss_core.datasets.layouts.flare22 import Flare22
from rfss_core.datasets.layouts.layout import Layout, Listing
from rfss_core.datasets.layouts.mnms import Mnms
from rfss_core.datasets.layouts.refuge import Refuge
from rfss_core.errors import LayoutError

AUTO = "auto"
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (Acdc(), Mnms(), Btcv(), Flare22(), Refuge(), Busi())}
"""Adapters by name."""


def choose_layout(name: str, listing: Listing, folder: str) -> Layout:
    """Return the layout of a name, or the one that a folder's files show.

    Args:
        name: one of :data:`LAYOUTS`, or ``auto``.
        listing: the folder's files.
        folder: for messages.

    Raises:
        LayoutError: no such name, or a folder of none or several of the layouts.
    """
    if name != AUTO:
        if name not in LAYOUTS:
            raise LayoutError(f"no layout is known as '{name}'; known are: {', '.join(LAYOUTS)}, or auto")
        return LAYOUTS[name]
    seen = [layout for layout in LAYOUTS.values() if layout.recognised(listing)]
    if len(seen) == 1:
        return seen[0]
    if seen:
        raise LayoutError(
            f"'{folder}' holds files of {' and '.join(layout.name for layout in seen)}; name the folder of one data set"
        )
    first = f" (its first file is '{min(listing)}')" if listing else ", and no file"
    raise LayoutError(
        f"'{folder}' is laid out like none of {', '.join(LAYOUTS)}{first}; name the data set's own top folder, or see "
        "docs/data.md for what each must look like"
    )


__all__ = ["AUTO", "LAYOUTS", "Layout", "choose_layout"]
