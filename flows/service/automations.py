"""Automations of a Prefect server, from ``automations.yaml`` beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from flows.server import refused
from flows.service.attendance import unattended
from flows.service.zombies import watch_again
from rfss_core.errors import ExecutionError, InputError

FILE = Path(__file__).with_name("automations.yaml")
BLOCK = "rfss-notify"
"""Name of the block that ``--webhook`` is saved in."""
MESSAGE = {"text": "{{subject}}\n{{body}}"}
"""What the hook gets: the form that Slack, Mattermost and Teams workflows take."""


def set_up(webhook: str | None = None, file: Path = FILE) -> list[str]:
    """Create the automations on the configured Prefect server, or bring them up to date; watch the runs at work anew.

    Args:
        webhook: URL that gets notifications; None: the one that was saved earlier, if any.
        file: the automations.

    Returns:
        One line an automation, one for runs that are at work, and one for deployments whose runs nobody would start.

    Raises:
        InputError: the webhook is no URL.
        ServerAccessError: the server refuses the credentials.
        ExecutionError: no server is configured, it does not answer, or with an error.
    """
    address = PREFECT_API_URL.value()
    if not address:
        raise ExecutionError("no Prefect server is configured; start one with `rfss serve`, or set PREFECT_API_URL")
    documents = yaml.safe_load(file.read_text(encoding="utf-8"))["automations"]
    try:
        with get_client(sync_client=True) as client:
            block = _block(webhook)
            lines = [_set_up(client, document, block) for document in documents]
            if watched := watch_again(client):
                lines.append(f"runs at work: {watched}; whichever stays silent is marked as crashed, or as cancelled")
            return [*lines, *unattended(client)]
    except httpx.TransportError as error:
        raise ExecutionError(
            f"the Prefect server at '{address}' does not answer ({error}); start it, for example with `rfss serve`"
        ) from error
    except httpx.HTTPStatusError as error:
        raise refused(address, error) from error


def _set_up(client: SyncPrefectClient, document: dict[str, Any], block: str | None) -> str:
    name = document["name"]
    actions = []
    for action in document["actions"]:
        resolved = dict(action)
        if "deployment" in resolved:
            wanted = resolved.pop("deployment")
            try:
                resolved["deployment_id"] = str(client.read_deployment_by_name(wanted).id)
            except ObjectNotFound:
                return f"left out '{name}': there is no deployment {wanted}"
        if resolved["type"] == "send-notification":
            if block is None:
                return f"left out '{name}': it needs --webhook URL"
            resolved["block_document_id"] = block
        actions.append(resolved)
    fresh = AutomationCore.model_validate({**document, "actions": actions})
    known = client.read_automations_by_name(name)
    if not known:
        client.create_automation(fresh)
        return f"set up '{name}'"
    # A model that was validated with it: the client leaves out what was not given.
    fresh = AutomationCore.model_validate({**document, "actions": actions, "enabled": known[0].enabled})
    off = "" if fresh.enabled else " (switched off)"
    if _content(known[0]) == _content(fresh):
        # Prefect drops what an automation waits for whenever it is written.
        return f"up to date '{name}'{off}"
    client.update_automation(known[0].id, fresh)
    return f"brought up to date '{name}'{off}"


def _content(automation: AutomationCore) -> dict[str, Any]:
    """Return what was asked for, without what the server added."""
    # No JSON: the names of events are sets, and their order is not always the same.
    return automation.model_dump(include=set(AutomationCore.model_fields))


def _block(webhook: str | None) -> str | None:
    """Save the webhook as a block of the server; return the id of the block that notifications go through."""
    if webhook is None:
        try:
            known: Any = CustomWebhookNotificationBlock.load(BLOCK)
        except ValueError:
            return None
        return str(known._block_document_id)  # noqa: SLF001
    parts = urlsplit(webhook)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"--webhook '{webhook}' is not a URL; give one such as https://hooks.example.org/services/...")
    block = CustomWebhookNotificationBlock(name=BLOCK, url=webhook, method="POST", json_data=MESSAGE)
    saved: Any = block.save(BLOCK, overwrite=True)
    return str(saved)
