"""The terminal, on which nothing that came from elsewhere is an instruction."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from fedddpm_protocol.untrusted.plain_text import plain_text


class PlainConsole(Console):
    """Prints texts as they are: no markup in them, no emoji, no highlights, and no control characters.

    Every text that is printed or stands in a table comes by ``render_str``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """One text, of one line or several."""
        return super().render_str(plain_text(text), **options)
