"""Options of the command line that are settings: made from the models in ``config``, which say all there is to say."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedddpm.config import Option


@dataclass(frozen=True)
class SettingOption:
    """One option, and the setting that it is."""

    table: str  # that the setting stands in; empty: in none
    setting: str
    parameter: inspect.Parameter  # of the command's function; None stands for "not given"


def setting_options(model: type[BaseModel], table: str = "") -> Iterator[SettingOption]:
    """An option for each setting of ``model`` that has a help, in the model's order; tables are gone into."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from setting_options(inner, name)
        for option in field.metadata:
            if isinstance(option, Option):
                yield SettingOption(table, name, _parameter(table, name, field, option))


def _parameter(table: str, name: str, field: FieldInfo, option: Option) -> inspect.Parameter:
    own, kind = option.name or name, option.kind or _kind(field.annotation)
    flag = f"--{own.replace('_', '-')}"
    # A switch that is off has nothing to be switched off by; one that is on has.
    flags = f"{flag}/--no-{flag.removeprefix('--')}" if kind is bool and field.default is True else flag
    shown = typer.Option(flags, help=f"{table}: {option.help}" if table else option.help)
    annotation = Annotated[kind | None, shown]  # type: ignore[valid-type]  # made from what is known at run time
    return inspect.Parameter(own, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _kind(annotation: Any) -> Any:
    """The type of an option's value: what is left of a setting's type without its None."""
    if get_origin(annotation) in (Union, types.UnionType):
        choices = [choice for choice in get_args(annotation) if choice is not types.NoneType]
        return _kind(choices[0]) if len(choices) == 1 else _unknown(annotation)
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return StrEnum("Choice", [(value.upper(), value) for value in get_args(annotation)])
    return annotation


def _unknown(annotation: Any) -> Any:
    raise TypeError(f"a value of {annotation} cannot be given as one option: say its kind in Option")


def settings_given(options: Iterable[SettingOption], given: Mapping[str, object]) -> dict[str, object]:
    """The settings that the values of ``options`` make, tables within; what was not given is None."""
    settings: dict[str, object] = {}
    tables: dict[str, dict[str, object]] = {}
    for option in options:
        value = given[option.parameter.name]
        place = tables.setdefault(option.table, {}) if option.table else settings
        place[option.setting] = value.value if isinstance(value, Enum) else value
    return settings | tables
