"""The options that say what a run is, for every command that starts one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fedddpm_aggregator.service.run_settings import DEFAULT_BITS, DEFAULT_FIRST_BITS, RING_CHOICES, RunSettings
from fedddpm_protocol.agreement.clipping import ADAPTIVE
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.spec import CHUNK_COORDINATES

InitialModel = Annotated[Path, typer.Option(help="theta_0, a safetensors file by the SDK's save_model")]


def with_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of :func:`run_settings`; it gets what they make as ``settings``."""
    own = inspect.signature(command, eval_str=True).parameters
    options = inspect.signature(run_settings, eval_str=True).parameters

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        settings = run_settings(**{name: values.pop(name) for name in options})
        command(settings=settings, **values)

    shown = [parameter for name, parameter in own.items() if name != "settings"] + list(options.values())
    wrapped.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in shown]
    )
    return wrapped


def run_settings(
    name: Annotated[str, typer.Option(help="name of the run")],
    method: Annotated[str, typer.Option(help=f"one of {', '.join(Method)}")],
    rounds: Annotated[int, typer.Option(min=1, help="rounds of the run")],
    epochs: Annotated[int, typer.Option(min=1, help="local epochs a round")] = 1,
    max_steps: Annotated[int, typer.Option(min=0, help="most local steps a round; 0: no limit")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="images in a local step")] = 128,
    learning_rate: Annotated[float, typer.Option(help="of the local optimizer")] = 1e-4,
    clip_norm: Annotated[float, typer.Option(help="largest L2 norm of one institution's update")] = 10.0,
    clip: Annotated[
        str,
        typer.Option(help="adaptive: from round 2 on the clip norm follows the last mean; fixed: --clip-norm it is"),
    ] = ADAPTIVE,
    weighting: Annotated[
        str, typer.Option(help="equal weights for all, or by sample counts: hidden or disclosed ones")
    ] = "equal",
    weight_cap: Annotated[int, typer.Option(min=1, help="samples that count as a full weight by samples")] = 65535,
    min_cohort: Annotated[int, typer.Option(min=0, help="joins to wait for; 0: the roster's n_min")] = 0,
    chunk_coordinates: Annotated[
        int, typer.Option(min=8, help="coordinates in a chunk; a multiple of 4096 fits all")
    ] = CHUNK_COORDINATES,
    bits: Annotated[int, typer.Option(help=f"ring in which updates travel: {RING_CHOICES} bits")] = DEFAULT_BITS,
    first_bits: Annotated[
        int | None,
        typer.Option(
            help="ring of the first round, and wherever nothing is known of a part's size; "
            f"by default {DEFAULT_FIRST_BITS}, or --bits where that is more",
            show_default=False,
        ),
    ] = None,
    join_s: Annotated[float, typer.Option(help="seconds for training and joining")] = 3600.0,
    shares_s: Annotated[float, typer.Option(help="seconds for exchanging key shares")] = 60.0,
    masked_s: Annotated[float, typer.Option(help="seconds for uploading")] = 600.0,
    confirm_s: Annotated[float, typer.Option(help="seconds for confirming who uploaded")] = 60.0,
    unmask_s: Annotated[float, typer.Option(help="seconds for the answers that open the sum")] = 120.0,
) -> RunSettings:
    """What the options say."""
    return RunSettings(
        name=name,
        method=method,
        rounds=rounds,
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        clip_norm=clip_norm,
        clip=clip,
        weighting=weighting,
        weight_cap=weight_cap,
        min_cohort=min_cohort,
        chunk_coordinates=chunk_coordinates,
        bits=bits,
        first_bits=first_bits,
        join_s=join_s,
        shares_s=shares_s,
        masked_s=masked_s,
        confirm_s=confirm_s,
        unmask_s=unmask_s,
    )
