"""How a flow ends in Prefect: states whose name and message say why."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar, cast

import httpx
from prefect import Flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from rfss_core.errors import GateError, RfssError

GATE_FAILED = "Failed: gate"
QUARANTINE = "Completed with quarantine"

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger("rfss")


def with_reasons(function: Callable[P, R]) -> Callable[P, R]:
    """Let a flow's function end in a failed state that carries our own errors' reason and message.

    The state is named ``Failed: <reason>``, for example ``Failed: gate`` or ``Failed: not found``. Whoever calls
    the flow gets the error raised, as ever. Errors that are not ours stay as they are: their traceback is what helps.
    """

    @functools.wraps(function)
    def reasoned(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            result = function(*arguments, **options)
        except RfssError as error:
            log.debug("the run ends", exc_info=True)
            _note(reasoned, error)
            return cast("R", Failed(name=failure_name(error), message=str(error), data=error))
        _note(reasoned, result)
        return result

    # Prefect builds the form from the annotations, and would look their names up in this module.
    reasoned.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]
    return reasoned


_noted: ContextVar[dict[Callable[..., Any], Any] | None] = ContextVar("_noted", default=None)


def _note(function: Callable[..., Any], outcome: Any) -> None:
    noted = _noted.get()
    if noted is not None:
        # Prefect replaces what a state carries.
        noted[function] = outcome.data if isinstance(outcome, State) else outcome


def outcome_of(flow: Flow[P, R], *arguments: P.args, **options: P.kwargs) -> R:
    """Call a flow; its result is not lost with a server that went away.

    A run needs the Prefect server when it begins and when it says how it ended. If its function had ended by then, what
    it returned or raised counts.

    Args:
        flow: its function is decorated with :func:`with_reasons`.
        arguments: of the flow.
        options: of the flow.

    Returns:
        What the flow's function returned.

    Raises:
        httpx.TransportError: the server went away before the function had ended, or before it began.
    """
    noted: dict[Callable[..., Any], Any] = {}
    token = _noted.set(noted)
    try:
        return flow(*arguments, **options)
    except httpx.TransportError as error:
        if flow.fn not in noted:
            raise
        log.warning("the Prefect server went away (%s) and does not know that this run ended; all is recorded", error)
        outcome = noted[flow.fn]
        if isinstance(outcome, RfssError):
            raise outcome from None
        return cast("R", outcome)
    finally:
        _noted.reset(token)


def failure_name(error: RfssError) -> str:
    """Return the name of the state that a flow fails with."""
    return GATE_FAILED if isinstance(error, GateError) else f"Failed: {error.reason.replace('_', ' ')}"


def completed(result: R, quarantined: dict[str, int]) -> R:
    """Return a flow's result as a state that says whether cases were set aside.

    Args:
        result: what the flow returns.
        quarantined: reason to number of cases.
    """
    if not quarantined:
        return result
    count = sum(quarantined.values())
    reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(quarantined.items()))
    were = "case was" if count == 1 else "cases were"
    state: Any = Completed(name=QUARANTINE, message=f"{count} {were} set aside: {reasons}", data=result)
    return cast("R", state)
