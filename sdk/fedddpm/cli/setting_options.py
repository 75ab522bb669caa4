"""Options of the command line that are settings: each is written down once, those of ``config`` in ``config``."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel

from fedddpm.config import Option


@dataclass(frozen=True)
class SettingOption:
    """One option, and the setting that it is."""

    table: str  # that the setting stands in; empty: in none
    setting: str
    parameter: inspect.Parameter  # of the command's function; None stands for "not given"


def setting_option(setting: str, kind: Any, help_: str, *flags: str, table: str = "") -> SettingOption:
    """The option of a value of ``kind`` for a setting; of the setting's name, unless there are ``flags``."""
    shown = typer.Option(*(flags or (_flag(setting),)), help=f"{table}: {help_}" if table else help_)
    name = f"{table}_{setting}" if table else setting
    annotation = Annotated[kind | None, shown]
    parameter = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
    return SettingOption(table, setting, parameter)


def setting_options(model: type[BaseModel], table: str = "") -> Iterator[SettingOption]:
    """An option for each setting of ``model`` that has a help, in the model's order; tables are gone into."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from setting_options(inner, name)
        for option in field.metadata:
            if isinstance(option, Option):
                kind, flag = option.kind or _kind(inner), _flag(option.name or name)
                # A switch that is off has nothing to be switched off by; one that is on has.
                flags = f"{flag}/--no-{flag.removeprefix('--')}" if kind is bool and field.default is True else flag
                yield setting_option(name, kind, option.help, flags, table=table)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


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


def place_among(command: Callable[..., None], options: Iterable[SettingOption], *, after: str) -> None:
    """Show typer the options as parameters of ``command``, behind its own one ``after``; it takes them by ``**``."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    named = [one.replace(kind=one.KEYWORD_ONLY) for one in own if one.kind is not one.VAR_KEYWORD]
    place = 1 + [one.name for one in named].index(after)
    shown = [*named[:place], *(option.parameter for option in options), *named[place:]]
    command.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]


def settings_given(options: Iterable[SettingOption], given: Mapping[str, object]) -> dict[str, object]:
    """The settings that the values of ``options`` make, tables within; what was not given is None."""
    settings: dict[str, object] = {}
    tables: dict[str, dict[str, object]] = {}
    for option in options:
        place = tables.setdefault(option.table, {}) if option.table else settings
        place[option.setting] = _plain(given[option.parameter.name])
    return settings | tables


def _plain(value: object) -> object:
    """What a setting takes: names of choices, and several of them together; None where none was given."""
    if isinstance(value, list):
        return tuple(map(_plain, value)) or None
    return value.value if isinstance(value, Enum) else value
