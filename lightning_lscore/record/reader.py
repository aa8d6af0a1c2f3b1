"""Lines of any schema into records, each with the context that stands before it."""

from __future__ import annotations

import json
from typing import Any

from . import schema1
from .lines import SCHEMA, Context
from .record import Record


class Reader:
    """Takes the lines of a file in their order."""

    def __init__(self) -> None:
        self._contexts: dict[Any, Context] = {}
        self._before: dict[Any, Record] = {}  # the newest record of each context

    def take(self, line: str) -> Record | None:
        """Return the record of a line; None for a context.

        Raises:
            ValueError: if the line is neither, or of an unknown schema.
        """
        try:
            data = json.loads(line)
            schema = data.get("schema") if isinstance(data, dict) else None
            if type(schema) is not int or schema not in (1, SCHEMA):
                raise ValueError(f'expected a JSON object with "schema": 1 or {SCHEMA}')
            if schema == 1:
                self._before[1] = record = schema1.record_of(data, self._before.get(1))
                return record
            key = data["context"]
            if "run" in data:
                self._contexts[key] = Context.of(data)
                return None
            self._before[key] = record = self._contexts[key].record(data, self._before.get(key))
            return record
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a record: {type(error).__name__}: {error}") from error

    def knows(self, key: Any) -> bool:
        """Whether the context of this hash was taken."""
        return key in self._contexts
