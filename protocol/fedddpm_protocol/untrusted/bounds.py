"""How large the JSON of a message can be, derived from its model: every text, list and number in it has a bound.

Whoever reads an answer asks for the bound of its kind first, and stops reading beyond it. Bytes alone do not bound the
memory of a parser, which needs much more for ``[],[],[]`` than for one long text: so the commas and opening brackets
are counted, too, before anything is parsed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel

_LATER = 64 * 2**10  # bytes of fields that later versions may add, and of signs of life in front
_LATER_MARKS = 4096
_WIDEST = 4  # bytes of a character in UTF-8 at most
_OFTEN = 3  # one in so many characters of a text is a comma or a bracket, at most
_PLAIN = {"integer": 20, "number": 26, "boolean": 5, "null": 4}  # bytes at most
_MARKS = (b",", b"[", b"{")
CAP = "most_bytes"  # attribute of a model whose answers are paged by bytes


@dataclass(frozen=True)
class Bound:
    """The most bytes of a JSON text, and the most commas and opening brackets in it."""

    size: int
    marks: int

    def holds(self, content: bytes) -> bool:
        """Whether ``content`` is within it."""
        return len(content) <= self.size and sum(map(content.count, _MARKS)) <= self.marks


NOTHING = Bound(_LATER, _LATER_MARKS)  # of an answer that nobody looks into


@cache
def bound_of(model: type[BaseModel]) -> Bound:
    """The bound of a model's JSON, without white space; TypeError where a field has none.

    A model whose attribute ``most_bytes`` is set has no more bytes than that, whatever its fields allow.
    """
    schema = model.model_json_schema()
    size, marks = _most(schema, schema.get("$defs", {}), model.__name__)
    return Bound(min(size, getattr(model, CAP, size)) + _LATER, marks + _LATER_MARKS)


def _most(schema: Mapping[str, Any], known: Mapping[str, Any], place: str) -> tuple[int, int]:
    """Bytes and marks of the largest value under ``schema``."""
    if "$ref" in schema:
        return _most(known[schema["$ref"].rpartition("/")[2]], known, place)
    for one_of in ("anyOf", "oneOf"):
        if one_of in schema:
            sizes = [_most(choice, known, place) for choice in schema[one_of]]
            return max(size for size, _ in sizes), max(marks for _, marks in sizes)
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if values is not None:
        return max(len(json.dumps(value)) for value in values), 0
    kind = schema.get("type")
    if kind == "object":
        return _object(schema, known, place)
    if kind == "array":
        size, marks = _most(schema["items"], known, f"{place}[]")
        count = _bound(schema, "maxItems", place)
        return 2 + count * (size + 1), 1 + count * (marks + 1)
    if kind == "string":
        return _text(schema, place)
    if kind == "integer":
        _bound(schema, "maximum", place)
    if kind not in _PLAIN:
        raise TypeError(f"{place} can be anything, so its size has no bound")
    return _PLAIN[kind], 0


def _text(schema: Mapping[str, Any], place: str) -> tuple[int, int]:
    """A pattern means a name or base64: characters of one byte, and no marks."""
    length = _bound(schema, "maxLength", place)
    return (2 + length, 0) if "pattern" in schema else (2 + _WIDEST * length, -(-length // _OFTEN))


def _object(schema: Mapping[str, Any], known: Mapping[str, Any], place: str) -> tuple[int, int]:
    size, total = 2, 1
    for name, field in schema.get("properties", {}).items():
        bytes_, marks = _most(field, known, f"{place}.{name}")
        size, total = size + len(name) + 4 + bytes_, total + marks + 1
    for field in (*schema.get("patternProperties", {}).values(), schema.get("additionalProperties")):
        if isinstance(field, Mapping):
            bytes_, marks = _most(field, known, f"{place}{{}}")
            count = _bound(schema, "maxProperties", place)
            name_length = _bound(schema.get("propertyNames", {}), "maxLength", f"{place}: its names")
            size, total = size + count * (name_length + 4 + bytes_), total + count * (marks + 1)
    return size, total


def _bound(schema: Mapping[str, Any], name: str, place: str) -> int:
    if name not in schema:
        raise TypeError(f"{place} has no {name}, so its size has no bound")
    return int(schema[name])
