"""Arguments of calls: JSON text on the wire, objects in templates, bare text of our own. Imports no torch."""

import json
from collections.abc import Mapping
from typing import Any


def as_object(written: object) -> dict[str, Any] | None:
    """The object that arguments are, as JSON text or as one; None where they are none."""
    if isinstance(written, Mapping):
        return dict(written)
    if not isinstance(written, str):
        return None
    try:
        found = json.loads(written)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def only_string(parameters: Mapping[str, Any]) -> str | None:
    """The name of a tool's one argument, if it is a string."""
    properties = parameters.get("properties")
    if not isinstance(properties, Mapping) or len(properties) != 1:
        return None
    ((name, schema),) = properties.items()
    is_string = isinstance(schema, Mapping) and schema.get("type") == "string"
    return name if is_string and isinstance(name, str) else None


def one_string(name: str) -> dict[str, Any]:
    """A schema of that one argument."""
    return {"properties": {name: {"type": "string"}}}
