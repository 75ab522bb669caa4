"""Looking at the operator's page as a program does, and bringing it into a state worth looking at."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser

import httpx
import pytest
from tests.aggregator.support.driver import ProblemError, Seat, take_seats
from tests.aggregator.support.sites import Site
from tests.aggregator.support.watching import first_state, until


def text_of(html: str) -> str:
    """What a reader sees, on one line."""
    words: list[str] = []

    class Reader(HTMLParser):
        def handle_data(self, data: str) -> None:
            words.append(data)

    Reader().feed(html)
    return " ".join(" ".join(words).split())


def page_text(site: Site, query: str = "") -> str:
    response = httpx.get(f"{site.url}/{query}", trust_env=False)
    assert response.status_code == 200, response.text
    return text_of(response.text)


def seats_in(site: Site, rounds_done: int = 0) -> list[Seat]:
    until(site, lambda state: state.results >= rounds_done and state.round == rounds_done and state.spec is not None)
    return take_seats(site.institutions.values(), site.federation.roster, first_state(site, rounds_done), "decoder")


def lose_secrets(site: Site, names: str) -> None:
    """Members that join a closed cohort again have lost their secrets and are not waited for."""
    for seat in seats_in(site):
        if seat.name in names:
            with pytest.raises(ProblemError, match=r"is over|failed"):
                seat.join(seq=2)


def read_events(stream: httpx.Response, count: int) -> list[tuple[str, str]]:
    """The next events: (name, data)."""
    return [(name, data) for name, _, data in read_raw_events(stream.iter_lines(), count)]


def read_raw_events(lines: Iterator[str], count: int) -> list[tuple[str, str, str]]:
    """The next events: (name, id, data)."""
    events: list[tuple[str, str, str]] = []
    fields: dict[str, str] = {}
    while len(events) < count:
        line = next(lines)
        if line:
            key, _, value = line.partition(":")
            fields[key] = value.removeprefix(" ")
        elif "data" in fields:
            events.append((fields.get("event", ""), fields.get("id", ""), fields["data"]))
            fields = {}
    return events
