"""Reads values of a config and says which one is wrong."""

from collections.abc import Mapping
from typing import Any

from trioserve.errors import ModelError


class Fields:
    """A parsed ``config.json``; null is the same as absent."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        value = self.values.get(key)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(f"config.json: {key} is {value!r}, not a whole number of at least 1")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ModelError(f"config.json: {key} is {value!r}, not a number")
        return float(value)

    def positive(self, key: str, default: float) -> float:
        """A number above 0, which something is multiplied by, divided by or bound with."""
        value = self.number(key, default)
        if not value > 0:
            raise ModelError(f"config.json: {key} is {value!r}, not a number above 0")
        return value

    def bound(self, key: str, default: float | None) -> float | None:
        """A number above 0, or None where the config says null, or says nothing and nothing is the default."""
        if key in self.values and self.values[key] is None:
            return None
        return None if default is None and key not in self.values else self.positive(key, default or 0.0)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ModelError(f"config.json: {key} is {value!r}, neither true nor false")
        return value
