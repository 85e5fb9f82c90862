"""Runs that nobody may watch any more: Prefect forgets whose heartbeats it awaits when an automation changes."""

from __future__ import annotations

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter

from tasks.events_out import send_event

HEARTBEAT = "prefect.flow-run.heartbeat"
_PAGE = 200


def watch_again(client: SyncPrefectClient) -> int:
    """Send one heartbeat for each run that the server believes to be at work and that sent some itself.

    The automation for zombies acts on silence after a heartbeat. What it awaits is lost where it is set up anew, and a
    server that was killed may never have noted it; a run that died with it would be running for ever. A run that lives
    sends its next heartbeat in time; one that does not is marked after the automation's patience.

    Args:
        client: of the server to ask; ``PREFECT_API_URL`` must name the same one.

    Returns:
        For how many runs.

    Raises:
        httpx.HTTPError: the server does not answer, or with an error.
    """
    running = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING]))
    runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(state=running), limit=_PAGE)
    return sum(
        send_event(HEARTBEAT, resource, run.name, {})
        for run in runs
        if _has_a_heart(client, resource := f"prefect.flow-run.{run.id}")
    )


def _has_a_heart(client: SyncPrefectClient, resource: str) -> bool:
    """Return whether a run ever sent a heartbeat: one that never does is silent, not dead."""
    asked = EventFilter(event=EventNameFilter(name=[HEARTBEAT]), resource=EventResourceFilter(id=[resource]))
    answer = client.request("POST", "/events/filter", json={"filter": asked.model_dump(mode="json"), "limit": 1})
    answer.raise_for_status()
    return bool(answer.json()["events"])
