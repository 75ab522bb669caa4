"""From records to HTML. Jinja2 escapes every value; nothing that came over the network is ever taken for markup."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from sqlalchemy.orm import Session

from fedddpm_aggregator.dashboard import words
from fedddpm_aggregator.dashboard.curves import loss_chart
from fedddpm_aggregator.dashboard.history import Histories, History
from fedddpm_aggregator.dashboard.now import CONNECTED_S, Now, now
from fedddpm_aggregator.dashboard.reasons import advice_on
from fedddpm_aggregator.dashboard.rounds import NEVER
from fedddpm_aggregator.db import queries
from fedddpm_aggregator.errors import NotFoundError, OperatorError
from fedddpm_aggregator.service.context import Context
from fedddpm_protocol.untrusted.plain_text import plain
from fedddpm_protocol.wire.phases import PHASES

LINES = 50  # rounds, attempts and models on one page, the newest first
_LONGEST = 2**20  # characters of one value, such as the points of a curve
WIDE, NARROW = (1000.0, 280.0), (340.0, 230.0)


@dataclass(frozen=True)
class Fragment:
    """A part of the page and a name for what stands in it."""

    name: str
    html: str
    digest: str


@dataclass(frozen=True)
class Frame:
    """The moving parts of the page at one moment."""

    fragments: tuple[Fragment, ...]

    @property
    def id(self) -> str:
        """Names what stands in all fragments."""
        return ".".join(fragment.digest for fragment in self.fragments)

    def events_since(self, seen: str) -> Iterator[bytes]:
        """Server-sent events with the fragments that ``seen`` does not name; the last one carries the frame's id."""
        known = seen.split(".")
        changed = [fragment for fragment in self.fragments if fragment.digest not in known]
        for fragment in changed:
            ident = f"id: {self.id}\n" if fragment is changed[-1] else ""
            yield f"event: {fragment.name}\n{ident}data: {json.dumps(fragment.html)}\n\n".encode()


class Views:
    """Renders pages over one context; calls may come from several threads."""

    def __init__(self, ctx: Context) -> None:
        self._ctx, self._histories = ctx, Histories(ctx)
        self._environment = _environment()
        self._kept: tuple[int, History | None, Fragment] | None = None

    def frame(self) -> Frame:
        """The current run, as the stream sends it and as a page without choices shows it."""
        with self._histories.view() as db:
            return self._frame(db, now(self._ctx, db))

    def page(self, run_name: str | None, before: int | None) -> str:
        """The whole page; of another run, or of rounds before one, it does not move. NotFoundError."""
        with self._histories.view() as db:
            current, names = now(self._ctx, db), self._histories.names(db)
            is_current = run_name is None or (current.run is not None and run_name == current.run.name)
            frame = self._frame(db, current) if is_current and before is None else self._still(db, run_name, before)
        return self._environment.get_template("page.html.j2").render(
            now=current,
            frame=frame,
            live=is_current and before is None,
            runs=names,
            chosen=run_name or (current.run.name if current.run is not None else None),
        )

    def _frame(self, db: Session, current: Now) -> Frame:
        history, fragment = self._past(db)
        return Frame((self._render_live(current, history), fragment))

    def _still(self, db: Session, run_name: str | None, before: int | None) -> Frame:
        try:
            history = self._histories.of(db, run_name, LINES, before)
        except OperatorError as error:
            raise NotFoundError(str(error)) from error
        return Frame((Fragment("live", "", ""), self._render_history(history, before)))

    def _past(self, db: Session) -> tuple[History | None, Fragment]:
        """The current run's history, rendered; made again when something changed or was not read yet."""
        version, kept = queries.state_version(db), self._kept
        if kept is None or kept[0] != version or not (kept[1] is None or kept[1].complete):
            history = self._histories.of(db, None, LINES)
            kept = self._kept = (version, history, self._render_history(history, None))
        return kept[1], kept[2]

    def _render_live(self, current: Now, history: History | None) -> Fragment:
        template = self._environment.get_template("live.html.j2")
        shown = {
            "now": current,
            "taking": history.taking if history is not None else {},
            "groups": words.grouped(current.run),
            "connected_s": CONNECTED_S,
        }
        # A countdown runs in the browser; it is no news that it is a second later.
        return Fragment("live", template.render(**shown, still=False), _digest(template.render(**shown, still=True)))

    def _render_history(self, history: History | None, before: int | None) -> Fragment:
        rounds = [one for one in history.rounds if before is None or one.index < before] if history else []
        html = self._environment.get_template("history.html.j2").render(
            history=history,
            rounds=rounds[-LINES:][::-1],
            older=rounds[-LINES].index if len(rounds) > LINES else None,
            newest=before is None,
            failures=history.failures[-LINES:][::-1] if history else (),
            spoiled=history.spoiled[-LINES:][::-1] if history else (),
            models=history.models[::-1] if history else (),
            wide=loss_chart(history.rounds, *WIDE) if history else None,
            narrow=loss_chart(history.rounds, *NARROW) if history else None,
        )
        return Fragment("history", html, _digest(html))


def _digest(html: str) -> str:
    return hashlib.sha256(html.encode()).hexdigest()[:16]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fedddpm_aggregator.dashboard"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        finalize=_plain,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        size=words.size, percent=words.percent, lasting=words.lasting, moment=_moment, loss=words.loss, day=_day
    )
    environment.globals.update(
        phases=PHASES, title=words.TITLES, status=words.STATUS, names=words.names, advise=advice_on, never=NEVER
    )
    return environment


def _plain(value: object) -> object:
    """Texts of other members, of a run's name, of a reason; what a template made itself is no ``str`` but markup."""
    return plain(value, _LONGEST) if type(value) is str else value


def _moment(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M")


def _day(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="seconds")
