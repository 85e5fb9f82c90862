"""Runs that nobody may watch any more: Prefect forgets whose heartbeats it awaits when an automation changes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter

from tasks.events_out import send_event

HEARTBEAT = "prefect.flow-run.heartbeat"
CANCELLING = "rfss.run.still-cancelling"
"""A run of ours that was to be cancelled and has not ended: said again, for whoever awaits its end."""
TAG = "rfss"
"""Of all our deployments."""
START = timedelta(minutes=5)
"""After this time a served run that is still pending has no process."""
_PAGE = 200


def watch_again(client: SyncPrefectClient) -> int:
    """Have all runs watched that the server believes to be at work and that seem to have had a heart.

    The automation for zombies acts on silence after a heartbeat, so each gets one heartbeat from here. What it awaits
    is lost where it is set up anew, and a server that was killed may never have noted it; a run that died with it would
    be running for ever. A run that lives sends its next heartbeat in time; one that does not is marked after the
    automation's patience. Runs that were to be cancelled have an automation of their own.

    Args:
        client: of the server to ask; ``PREFECT_API_URL`` must name the same one.

    Returns:
        For how many runs.

    Raises:
        httpx.HTTPError: the server does not answer, or with an error.
    """
    told = 0
    for run in _at_work(client):
        if run.state is not None and run.state.is_cancelling():
            told += TAG in run.tags and send_event(CANCELLING, f"prefect.flow-run.{run.id}", run.name, {}, [TAG])
        elif _never_began(run) or _sent_heartbeats(client, run):
            told += send_event(HEARTBEAT, f"prefect.flow-run.{run.id}", run.name, {})
    return told


def _at_work(client: SyncPrefectClient) -> Iterator[FlowRun]:
    types = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
    wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types)))
    for offset in itertools.count(0, _PAGE):
        page = client.read_flow_runs(flow_run_filter=wanted, limit=_PAGE, offset=offset)
        yield from page
        if len(page) < _PAGE:
            return


def _never_began(run: FlowRun) -> bool:
    """Return whether a served run's process seems to have died before its first heartbeat.

    A worker of a pool may wait that long for a machine; a served run is a process that its runner starts at once.
    """
    if run.state is None or not run.state.is_pending() or run.deployment_id is None or run.work_pool_name is not None:
        return False
    return datetime.now(UTC) - run.state.timestamp > START


def _sent_heartbeats(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Return whether a run ever sent a heartbeat: one that never does is silent, not dead."""
    asked = EventFilter(
        event=EventNameFilter(name=[HEARTBEAT]), resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"])
    )
    answer = client.request("POST", "/events/filter", json={"filter": asked.model_dump(mode="json"), "limit": 1})
    answer.raise_for_status()
    return bool(answer.json()["events"])
