"""The code's own version: what a fingerprint says about the program that made the pseudo-labels."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from rfss_core import __version__
from rfss_core.digest import digest_bytes

# Only these rooms can change a pseudo-label; a new report or command leaves finished chunks valid.
_ROOMS = ("imaging", "embedding", "retrieval", "segmentation")


@cache
def code_version(*rooms: str) -> str:
    """Return the release and the digest of sources, for example ``0.1.0+3f2a9c01d4e5``.

    Args:
        rooms: packages of ``rfss_core`` that the result depends on. Default: all that make pseudo-labels.
    """
    root = Path(__file__).parent
    sources = [source for room in rooms or _ROOMS for source in sorted((root / room).rglob("*.py"))]
    parts = [source.relative_to(root).as_posix().encode() + b"\0" + source.read_bytes() for source in sources]
    return f"{__version__}+{digest_bytes(b''.join(parts))[:12]}"
