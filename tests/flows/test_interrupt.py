"""Ctrl-C at the worst moment: inside a finaliser, whose errors Python ignores."""

from __future__ import annotations

import os
import signal
import sys
import time
import weakref
from collections.abc import Callable

import pytest

from flows.interrupt import swallowed_interrupts_return

PATIENCE_S = 5.0


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(100):
        time.sleep(0.001)  # the handler runs between two of these


class Finalised:
    def __del__(self) -> None:
        press()


def by_del() -> None:
    Finalised()


def by_weak_reference() -> None:
    class Plain:
        pass

    plain = Plain()
    reference = weakref.ref(plain, lambda _: press())
    del plain
    assert reference() is None


def lose_and_sleep(lose: Callable[[], None]) -> None:
    with swallowed_interrupts_return():
        lose()
        time.sleep(PATIENCE_S)


@pytest.mark.parametrize("lose", [by_del, by_weak_reference])
def test_an_interrupt_inside_a_finaliser_comes_again(lose: Callable[[], None]) -> None:
    before, handler = sys.unraisablehook, signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            lose_and_sleep(lose)
        assert time.monotonic() - started < PATIENCE_S
        assert sys.unraisablehook is before
    finally:
        signal.signal(signal.SIGINT, handler)


def test_other_errors_of_finalisers_are_shown_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[type] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: seen.append(what.exc_type))

    class Broken:
        def __del__(self) -> None:
            raise ValueError

    with swallowed_interrupts_return():
        Broken()
    assert seen == [ValueError]
