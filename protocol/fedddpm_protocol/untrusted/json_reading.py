"""JSON from elsewhere: read without a trace, whatever it is, and no deeper than the parser's own bound (200).

``json.loads`` recurses in Python, so a short text of brackets ends a program, and it takes numbers of any length.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

RECORD = TypeVar("RECORD")


def read_json(text: str | bytes) -> Any:
    """The value in ``text``; ValueError with words that repeat nothing of it where it is no JSON, or is too deep."""
    try:
        return from_json(text)
    except (ValueError, TypeError, RecursionError, MemoryError, OverflowError):  # TypeError: half a character
        raise ValueError("it is no JSON, or too deep") from None


def record_of(kind: type[RECORD], fields: object) -> RECORD:
    """A frozen dataclass from JSON's ``fields``: types checked, none unknown; ValueError."""
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(fields, dict) or not set(fields) <= known:
        raise ValueError(f"it is no {kind.__name__}: other fields than those")
    try:
        record = TypeAdapter(kind).validate_python(fields)
    except ValidationError as error:
        said = error.errors(include_input=False, include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"it is no {kind.__name__}: {said}") from None
    return record
