"""What all settings objects share."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.fields import ComputedFieldInfo, FieldInfo

_UNITS = {"s": "seconds", "mb": "MiB", "mm": "mm"}
_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")


def field_title(name: str, _: FieldInfo | ComputedFieldInfo) -> str:
    """Return what a form calls a field: ``lease_s`` is "Lease (seconds)"."""
    words = name.split("_")
    unit = _UNITS.get(words[-1]) if len(words) > 1 else None
    text = " ".join(words[:-1] if unit else words)
    return f"{text[:1].upper()}{text[1:]} ({unit})" if unit else f"{text[:1].upper()}{text[1:]}"


def say_bounds(schema: dict[str, Any]) -> None:
    """Append each number's bounds to its description: forms show descriptions, and bounds only once broken."""
    for part in schema.get("properties", {}).values():
        found = next((option for option in (part, *part.get("anyOf", ())) if any(b in option for b in _BOUNDS)), None)
        if found is None or "description" not in part:
            continue
        low = found.get("minimum", found.get("exclusiveMinimum"))
        high = found.get("maximum", found.get("exclusiveMaximum"))
        parts = []
        if low is not None:
            parts.append(f"{'above' if 'exclusiveMinimum' in found else 'at least'} {low:g}")
        if high is not None:
            parts.append(f"{'below' if 'exclusiveMaximum' in found else 'at most'} {high:.12g}")
        part["description"] = f"{part['description']} Allowed: {', '.join(parts)}."


class SettingsModel(BaseModel):
    """Immutable settings that refuse unknown fields and check their defaults too."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        field_title_generator=field_title,
        json_schema_extra=say_bounds,
    )
