"""Whether the Prefect server can be told anything at this moment."""

from __future__ import annotations

import httpx
from prefect.settings import PREFECT_API_URL

ANSWER_S = 5.0


def server_answers() -> bool:
    """Return whether the configured Prefect server answers, within seconds.

    Prefect's own client goes on for more than a minute before it gives up, at every call.
    """
    url = PREFECT_API_URL.value()
    if not url:
        return True
    try:
        return httpx.get(f"{url}/health", timeout=ANSWER_S).is_success
    except httpx.HTTPError:
        return False
