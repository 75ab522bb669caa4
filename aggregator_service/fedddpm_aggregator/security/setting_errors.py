"""A setting that cannot be, as one line: which variable, what is wrong, what helps."""

from __future__ import annotations

from pydantic import ValidationError

_ADDED = ("Value error, ", "Assertion failed, ")  # what pydantic puts before the words of this program


def first_error(error: ValidationError, model: str, prefix: str) -> str:
    """The first thing that is wrong; settings (of the class named ``model``) by their variables. No value is shown."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    said = first["msg"]
    for added in _ADDED:
        said = said.removeprefix(added)
    place = ".".join(str(step) for step in first["loc"])
    return f"{prefix}{place.upper()}: {said}" if error.title == model else f"{place}: {said}"
