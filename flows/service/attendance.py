"""Who looks after our deployments: a work pool without a worker starts nothing, and Prefect does not say so."""

from __future__ import annotations

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags

TAG = "rfss"
"""Tag of our deployments."""
_PAGE = 200


def unattended(client: SyncPrefectClient) -> list[str]:
    """Return a line for each work pool of our deployments that no worker polls, and for deployments that nobody serves.

    Args:
        client: of the server to ask.
    """
    ours = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    waiting: dict[str | None, list[str]] = {}
    for deployment in client.read_deployments(deployment_filter=ours, limit=_PAGE):
        if deployment.status == "NOT_READY":
            waiting.setdefault(deployment.work_pool_name, []).append(deployment.name)
    return [
        f"deployments {', '.join(sorted(names))}: "
        + (
            "nobody serves them, so their runs wait; start `rfss serve`"
            if pool is None
            else f"no worker polls work pool '{pool}', so their runs wait; start `prefect worker start --pool {pool}`"
        )
        for pool, names in waiting.items()
    ]
