"""Traces of a round, as a collector receives them from a real server process."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest
from tests.aggregator.support.driver import Seat, drive, take_seats
from tests.aggregator.support.federations import Federation, identity_of
from tests.aggregator.support.processes import WatchedProcess
from tests.aggregator.support.sites import Site
from tests.aggregator.support.watching import first_state, result_of

pytest.importorskip("opentelemetry.sdk", reason="traces need the extra otel")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="traces need the extra otel")

from tests.aggregator.support.collectors import Collector, attributes, collecting

ABOUT = {"fedddpm.run": "run-1", "fedddpm.round": 0, "fedddpm.attempt": 0}


@dataclass
class Traced:
    collector: Collector
    federation: Federation
    seats: list[Seat]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    federation = Federation(tmp_path_factory.mktemp("traced"))
    federation.start_run(rounds=1)
    with collecting() as collector:
        server = WatchedProcess(federation, tracing=True)
        server.variables |= {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_SERVICE_NAME": "hospital-sum",
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST": ".*",
        }
        server.start()
        try:
            with closing(Site(federation, server.url)) as site:
                seats = take_seats(site.institutions.values(), federation.roster, first_state(site), "decoder")
                drive(seats)
                result_of(site, 0)
                server.get("/healthz")
            server.terminate()
            assert server.wait() == 0
        finally:
            server.kill()
        yield Traced(collector, federation, seats)


def test_a_round_is_traced(traced: Traced) -> None:
    collector = traced.collector
    assert collector.services == {"hospital-sum"}
    route = "/v1/sessions/{spec}/{part}"
    for step in ("joins", "shares", "upload", "confirmations", "unmask"):
        spans = collector.named(f"POST {route}/{step}")
        assert len(spans) == 4, step
        for span in spans:
            assert attributes(span).items() >= {**ABOUT, "fedddpm.part": "decoder"}.items()
            assert attributes(span)["fedddpm.request_id"]
    (opening,) = [span for span in collector.named("open sum") if "fedddpm.session" in attributes(span)]
    assert attributes(opening).items() >= ABOUT.items()
    published = [span for span in collector.named("publish round") if ABOUT.items() <= attributes(span).items()]
    assert published
    statements = [span for span in collector.spans if span.parent_span_id == opening.span_id]
    assert any("FROM sessions" in str(attributes(span).get("db.statement")) for span in statements)


def test_looks_at_the_clock_leave_no_trace(traced: Traced) -> None:
    alone = {span.name for span in traced.collector.spans if not span.parent_span_id}
    assert {name.partition(" ")[0] for name in alone} == {"GET", "POST", "PUT", "conclude"}
    assert not [name for name in alone if "health" in name or "metrics" in name]


def test_nothing_secret_is_traced(traced: Traced) -> None:
    everything = b"".join(traced.collector.raw)
    assert len(everything) > 10_000
    for name in traced.federation.members:
        assert identity_of(name).seed not in everything
    for seat in traced.seats:
        hidden = [bytes(chunk) for chunk in seat.chunks.values()]
        hidden += [item.sealed for item in seat.shares_message.items]
        for secret in hidden:
            start = secret[:24]
            for form in (start, start.hex().encode(), base64.b64encode(start)):
                assert form not in everything
    for text in (b"signature-input", b"content-digest", b"nonce=", b"sig1"):
        assert text not in everything.lower()


def test_tracing_without_its_extra_says_what_to_do(tmp_path: pytest.TempPathFactory) -> None:
    federation = Federation(tmp_path)  # type: ignore[arg-type]
    code = "import sys; sys.modules['opentelemetry.sdk.trace'] = None\n"
    code += "from fedddpm_aggregator.cli.app import main; main()"
    program = [sys.executable, "-c", code, "serve", "--data", str(federation.settings.data), "--port", "0"]
    environment = {"FEDDDPM_AGGREGATOR_TRACING": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "fedddpm-aggregator[otel]" in done.stderr
    assert "Traceback" not in done.stderr
