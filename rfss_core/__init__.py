"""RFSS: retrieval-augmented few-shot segmentation of medical images.

The two names of the ten-line library use load on first use, so that ``import rfss_core`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rfss_core.pipeline import FewShotSegmenter
    from rfss_core.retrieval import SupportSet

__version__ = "0.1.0"
__all__ = ["FewShotSegmenter", "SupportSet", "__version__"]

_HOMES = {"FewShotSegmenter": "rfss_core.pipeline", "SupportSet": "rfss_core.retrieval"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
