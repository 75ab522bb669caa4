"""The options that say what a run is, for every command that starts one: one for each field of its settings."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from fedddpm_aggregator.service.administration.run_settings import Asked

InitialModel = Annotated[Path, typer.Option(help="theta_0, a safetensors file by the SDK's save_model")]


def with_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of its ``settings``, a dataclass; it gets what they make."""
    parameters = dict(inspect.signature(command, eval_str=True).parameters)
    settings_class = parameters.pop("settings").annotation
    options = list(_options_of(settings_class))

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        settings = settings_class(**{option.name: values.pop(option.name) for option in options})
        command(settings=settings, **values)

    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters.values()]
    wrapped.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    return wrapped


def _options_of(settings_class: type) -> Iterator[inspect.Parameter]:
    """Each field as the parameter that typer makes an option of."""
    types, described = get_type_hints(settings_class), get_type_hints(settings_class, include_extras=True)
    for field in dataclasses.fields(settings_class):
        (asked,) = (words for words in described[field.name].__metadata__ if isinstance(words, Asked))
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=Annotated[types[field.name], typer.Option(help=asked.help, min=asked.least)],
        )
