"""What all pictures of a study share: colours, an empty figure, writing it down.

Drawn without a display and without matplotlib's global state, so that any thread may draw. Colours are Okabe and Ito's
(2008), which colour-blind readers tell apart; lines differ in their dashes and markers too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from fedddpm.errors import CheckpointError
from fedddpm.evaluation.optional_packages import require_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES: dict[str, tuple[str, Any, str]] = {  # colour, dashes, marker
    "FULL": ("#0072B2", "-", "o"),
    "USPLIT": ("#E69F00", "--", "s"),
    "ULATDEC": ("#009E73", "-.", "^"),
    "UDEC": ("#D55E00", (0, (5, 1, 1, 1, 1, 1)), "D"),
    "TURN": ("#56B4E9", (0, (3, 1)), "v"),
    "centralised": ("#555555", ":", "x"),
}
_OTHER = ("#CC79A7", "-", "*")
_DPI = 144
_PALEST = 0.35


def style(method: str) -> dict[str, Any]:
    """Colour, dashes and marker of a method, as matplotlib's ``plot`` takes them."""
    colour, dashes, marker = _STYLES.get(method, _OTHER)
    return {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 5}


def paleness(bits: int, rings: Sequence[int]) -> float:
    """Opacity that tells rings of one method apart: 1 for the widest, less for narrower ones."""
    order = sorted(set(rings), reverse=True)
    return 1.0 if len(order) < 2 else 1.0 - (1.0 - _PALEST) * order.index(bits) / (len(order) - 1)


def empty_figure(width: float, height: float) -> Figure:
    """An empty figure in inches, drawn by Agg; ConfigError if matplotlib is missing."""
    require_extra()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def save_figure(figure: Figure, path: Path) -> Path:
    """Write it as PNG; CheckpointError if the disk does not take it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=_DPI, format="png")
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def save_image(image: Image.Image, path: Path) -> Path:
    """Write it as PNG; CheckpointError if the disk does not take it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, format="PNG")
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def _unwritable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path} could not be written ({error.strerror or error})", "Check the disk and the folder")
