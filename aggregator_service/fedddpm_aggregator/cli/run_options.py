"""The options that say what a run is, for every command that signs or starts one: one for each field of a list."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from fedddpm_aggregator.service.administration.run_settings import Asked
from fedddpm_protocol.agreement.charter import Charter

InitialModel = Annotated[Path, typer.Option(help="theta_0, a safetensors file by the SDK's save_model")]


def with_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of its parameters that are dataclasses; it gets what they make."""
    parameters = dict(inspect.signature(command, eval_str=True).parameters)
    asked = {name: one.annotation for name, one in parameters.items() if _is_a_list_of_settings(one.annotation)}
    options = {name: list(_options_of(parameters.pop(name).annotation)) for name in asked}

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        made = {
            name: settings_class(**{option.name: values.pop(option.name) for option in options[name]})
            for name, settings_class in asked.items()
        }
        command(**made, **values)

    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters.values()]
    own += [option for each in options.values() for option in each]
    wrapped.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    return wrapped


def _is_a_list_of_settings(annotation: Any) -> bool:
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


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


def started(charter: Charter, is_new: bool) -> str:
    """What became of a charter that was installed, for the screen."""
    what = f"run {charter.run} {'starts' if is_new else 'was started before'}"
    return f"{what}: {charter.rounds} rounds of {charter.method} (charter {charter.number})"
