"""Log lines as JSON objects: which fields they have."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from rfss_core.events import Event
from tasks.log_context import CONTEXT_FIELDS

UNTOLD = ("name", "message", "case_id", "predicted_dice")
"""Fields of events that no line carries as they are: they may name a patient, or are as many as there are cases."""
EVENT_FIELDS = tuple(
    dict.fromkeys(part.name for kind in Event.__subclasses__() for part in fields(kind) if part.name not in UNTOLD)
)
"""What a line about an event carries besides."""
LINE_FIELDS = tuple(
    dict.fromkeys(
        ("time", "level", "logger", "message", *CONTEXT_FIELDS, "event", *EVENT_FIELDS, "code", "exc_info"),
    )
)
"""All fields that a JSON line can have, in this order; one that does not apply is left out."""


class JsonLines(JsonFormatter):
    """One JSON object a line, of :data:`LINE_FIELDS` alone: what other libraries add to their records stays out."""

    def __init__(self, *_: object) -> None:
        # Prefect's configuration, which may name this class, gives a format that is not ours.
        super().__init__(
            ["levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger"},
            # ASCII: whatever the terminal's encoding is, and whatever its reader takes for the end of a line.
            json_ensure_ascii=True,
            json_default=str,
        )

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Add the moment, UTC in milliseconds."""
        super().add_fields(log_data, record, message_dict)
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        log_data["time"] = moment.replace("+00:00", "Z")

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Keep our fields, in their order."""
        return {name: _plain(log_data[name]) for name in LINE_FIELDS if log_data.get(name) is not None}


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it: no NaN, no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def event_fields(event: Event) -> dict[str, Any]:
    """Return what a line about an event carries: ``event``, its type, and its fields but :data:`UNTOLD`."""
    told = {part.name: getattr(event, part.name) for part in fields(event) if part.name not in UNTOLD}
    kind = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in type(event).__name__)
    if case_id := getattr(event, "case_id", ""):
        told["case"] = [case_id]
    return {"event": kind.removeprefix("_"), **told}
