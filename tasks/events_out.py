"""Events to Prefect: what automations outside a run react to."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from prefect.context import FlowRunContext, TaskRunContext
from prefect.events import Event, emit_event
from prefect.events.clients import get_events_client
from prefect.events.related import tags_as_related_resources
from prefect.settings import PREFECT_API_URL
from prefect.utilities.asyncutils import run_coro_as_sync

log = logging.getLogger("rfss")

PROMOTED = "rfss.dataset.promoted"
"""A data set became the champion. Payload: ``name``, ``version``, ``digest``, ``tracking_uri``, ``previous``
(version), ``by``."""
ROLLED_BACK = "rfss.dataset.rolled-back"
"""The champion before became the champion again. Same payload."""
DEMOTED = "rfss.dataset.demoted"
"""A data set has no champion any more. Same payload."""


def dataset_resource(name: str) -> str:
    """Return the id of the resource that a data set's events are about."""
    return f"rfss.dataset.{name}"


def send_event(event: str, resource_id: str, name: str, payload: Mapping[str, Any], tags: Collection[str] = ()) -> bool:
    """Tell Prefect that something happened; whatever asked for it has been done already and stays done.

    Inside a flow the event is related to its run and sent in the background. Elsewhere it is sent to the server that
    ``PREFECT_API_URL`` (or the profile) names, and this waits until the server has it.

    Args:
        event: what happened, for example :data:`PROMOTED`.
        resource_id: what it happened to, for example :func:`dataset_resource`.
        name: the resource's name in Prefect's UI.
        payload: plain JSON.
        tags: that an automation may ask for, as Prefect's own events have those of their run.

    Returns:
        Whether the event was handed over; False without a server, or where it does not answer (a warning in the log).
    """
    resource = {"prefect.resource.id": resource_id, "prefect.resource.name": name}
    related = tags_as_related_resources(tags)
    if FlowRunContext.get() is not None or TaskRunContext.get() is not None:
        return emit_event(event, resource, related=related, payload=dict(payload)) is not None
    if not PREFECT_API_URL.value():
        return False
    try:
        run_coro_as_sync(
            _send(
                Event(
                    event=event, resource=resource, related=related, payload=dict(payload), occurred=datetime.now(UTC)
                )
            )
        )
    except Exception as error:  # noqa: BLE001 - websockets, httpx and asyncio each have errors of their own
        log.warning("event %s of %s did not reach Prefect at %s: %s", event, name, PREFECT_API_URL.value(), error)
        return False
    return True


async def _send(event: Event) -> None:
    # Each event is confirmed: the process may end right after.
    async with get_events_client(reconnection_attempts=1, checkpoint_every=1) as client:
        await client.emit(event)
