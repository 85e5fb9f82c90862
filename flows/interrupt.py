"""Ctrl-C that Python swallowed: pressed again."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

AGAIN_S = 0.05


@contextmanager
def swallowed_interrupts_return() -> Iterator[None]:
    """Interrupt the main thread again where Ctrl-C fell into a finaliser.

    Python ignores whatever a ``__del__`` or a weak reference's callback raises, ``KeyboardInterrupt`` included: the
    command would go on to its end as if nobody had pressed anything.
    """
    before = sys.unraisablehook

    def hook(what: UnraisableHookArgs, /) -> None:
        if not issubclass(what.exc_type, KeyboardInterrupt):
            before(what)
            return
        # Not from here: the hook belongs to the finaliser, and what it raises is ignored too.
        timer = threading.Timer(AGAIN_S, os.kill, (os.getpid(), signal.SIGINT))
        timer.daemon = True
        timer.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
