"""Lines of any schema into records, each with the context that stands before it."""

from __future__ import annotations

import json
import re
from functools import partial

from ..equation.safe_numbers import short
from . import schema1
from .context import Context
from .lines import CHECKSUM_BYTES, SCHEMA, checksum, is_as_written
from .record import Record

_BEGINNING = re.compile(rb'{"schema":2,"context":"([0-9a-f]{12})","batch":(\d{1,18}),')


class Reader:
    """Takes the lines of a file in their order."""

    def __init__(self) -> None:
        self._contexts: dict[bytes, Context] = {}
        self._as_written: set[bytes] = set()  # the contexts of which validations are parsed later
        self._of_schema_1: Record | None = None  # the newest one

    def take(self, line: bytes) -> Record | None:
        """Return the record of a line; None for a context.

        Raises:
            ValueError: if the line is neither, or of an unknown schema.
        """
        known = _BEGINNING.match(line)
        if known is not None and known[1] in self._as_written:
            line = line.rstrip()
            if line.endswith(checksum(line[:-CHECKSUM_BYTES]).encode()):
                context = self._contexts[known[1]]
                return Record.parsed_later(context.run, int(known[2]), partial(context.parse, line))
        try:
            data = json.loads(line.decode(errors="replace"))
            schema = data.get("schema") if isinstance(data, dict) else None
            if type(schema) is not int or schema not in (1, SCHEMA):
                newer = type(schema) is int and schema > SCHEMA
                raise ValueError(
                    f'expected a JSON object with "schema": 1 or {SCHEMA}, got {short(schema)}'
                    + ("; update lightning-lscore to read it" if newer else "")
                )
            if schema == 1:
                self._of_schema_1 = record = schema1.record_of(data, self._of_schema_1)
                return record
            key = str(data["context"]).encode()
            if "run" not in data:
                return self._contexts[key].record(data)
            if key not in self._contexts:
                self._contexts[key] = Context(data)
                if is_as_written(line):
                    self._as_written.add(key)
            return None
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a record: {type(error).__name__}: {error}") from error

    def knows(self, key: bytes) -> bool:
        """Whether the context of this hash was taken."""
        return key in self._contexts
