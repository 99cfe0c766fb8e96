"""Compare what runs have computed, whatever time they took."""

from typing import Any


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record without its measurements of time."""
    kept = {key: value for key, value in record.items() if key not in ("seconds", "evaluation_seconds")}
    return {**kept, "cost": {key: value for key, value in record["cost"].items() if not key.endswith("_seconds")}}
