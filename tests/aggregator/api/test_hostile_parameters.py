"""Whatever stands in a path, a query, a header or a body of the interface: a refusal in words, and never a defect.

The parameters are those of the OpenAPI document, so a new route is asked for as well.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from http_message_signatures import HTTPMessageSignaturesException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.aggregator.support.driver import Institution
from tests.aggregator.support.federations import identity_of
from tests.aggregator.support.sites import NewFederation

from fedddpm_aggregator.app import create_app
from fedddpm_aggregator.selftest.serving import served_here
from fedddpm_aggregator.settings import Settings
from fedddpm_aggregator.telemetry.logs import JsonFormatter, noting
from fedddpm_protocol.agreement.roster import Member
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.primitives import canonical

OPERATOR = "operator"
DOCUMENT = create_app(Settings(data="unused")).openapi()  # type: ignore[arg-type]
OPERATIONS = [
    pytest.param(method, path, operation, id=f"{method} {path}")
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]
PAGE = [
    "/",
    "/page/events",
    "/page/static/{name}",
    "/page/models/{model}.safetensors",
    "/page/results/{run}/{round}.json",
]
PAGE_OPERATIONS = [
    pytest.param(
        "get",
        path,
        {
            "parameters": [{"name": name, "in": "path"} for name in re.findall(r"{(\w+)}", path)]
            + [{"name": name, "in": "query"} for name in ("run", "before", "seen")]
        },
        id=f"page {path}",
    )
    for path in PAGE
]
NUMBERS = [
    *(sign * (2**power + off) for sign in (1, -1) for power in (7, 31, 32, 63, 64, 70, 200) for off in (-1, 0, 1))
]
CONTROL = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x200B, 0x202E, 0x2028, 0x2029, 0xFEFF, 0xE0041]))
TEXTS = st.one_of(
    st.sampled_from(NUMBERS).map(str),
    st.integers(4000, 6000).map(lambda digits: "9" * digits),
    st.sampled_from(
        ["", "0", "-0", "1e400", "NaN", "inf", "0x10", "\uff11\uff12", "1_0", " 1", "+1", "%00", "..", "../..", "a/b"]
    ),
    st.sampled_from(["\x00", "\x1b[2J\x1b]0;forged\x07", "a\nforged", "a\r\nX-Forged: 1", "\u202eevil", "a\x9b31m"]),
    st.text(st.sampled_from(CONTROL + "ab1.-_/%?#&=[]{}"), max_size=100),
    st.text(max_size=60),
    st.sampled_from(["run-1", "decoder", "0" * 64, "A" * 64, "f" * 64, "x" * 80, "x" * 81, "x" * 1500]),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.sampled_from(NUMBERS), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
RAW = {
    "deep lists": b"[" * 10**5,
    "deep objects": b'{"a":' * 10**5,
    "digits": b"9" * 5000,
    "digits inside": b'{"body":' + b"9" * 5000 + b"}",
    "no UTF-8": b"\xff\xfe",
    "escapes": b"\x1b[2J",
    "NaN": b"NaN",
    "half a character": b'"\\ud800"',
}
FEW = settings(deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
EXAMPLES = [3, pytest.param(60, marks=pytest.mark.soak)]  # of each operation, drawn at random


class Lines(logging.Handler):
    """The log as it would be written."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def log() -> Iterator[Lines]:
    handler, root = Lines(), logging.getLogger()
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)


@pytest.fixture
def asked(new_federation: NewFederation) -> Iterator[dict[str, Institution]]:
    federation = new_federation(operators=(Member(OPERATOR, identity_of(OPERATOR).public_key),))
    federation.start_run()
    with served_here(federation.settings) as url:
        who = {name: Institution(url, name, identity_of(name)) for name in ("a", OPERATOR)}
        yield who
        for one in who.values():
            one.close()


def filled(path: str, parameters: list[dict[str, Any]], draw: Any) -> tuple[str, dict[str, str]]:
    """The path with hostile values in one or all of its places, and a query."""
    good = {
        "run": "run-1",
        "part": "decoder",
        "segment": "decoder",
        "spec": "0" * 64,
        "model": "0" * 64,
        "sha256": "0" * 64,
    }
    places = [one["name"] for one in parameters if one["in"] == "path"]
    chosen = draw(st.sampled_from([*places, None])) if places else None
    for name in places:
        value = good.get(name, "0") if chosen not in (None, name) else draw(TEXTS)
        path = path.replace(f"{{{name}}}", quote(value, safe=draw(st.sampled_from(["", "%", "/"]))))
    query = {one["name"]: draw(TEXTS) for one in parameters if one["in"] == "query" and draw(st.booleans())}
    return path, query


def content(operation: dict[str, Any], draw: Any) -> tuple[bytes, str]:
    body = operation.get("requestBody", {}).get("content", {})
    if "application/json" not in body:
        return (draw(st.binary(max_size=50)) if body else b""), "application/octet-stream"
    if draw(st.integers(0, 3)) == 0:
        return RAW[draw(st.sampled_from(sorted(RAW)))], "application/json"
    example = body["application/json"]["schema"].get("examples", [{}])[0]
    document = changed(example, draw)
    return json.dumps(document).encode("utf-8", "surrogatepass"), "application/json"


def changed(value: Any, draw: Any) -> Any:
    """An example with one of its values, at any depth, replaced."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        name = draw(st.sampled_from(sorted(value)))
        return {**value, name: changed(value[name], draw)}
    if isinstance(value, list) and value and draw(st.booleans()):
        return [changed(value[0], draw), *value[1:]]
    return draw(VALUES)


def check(response: httpx.Response, log: Lines, place: object) -> None:
    assert response.status_code < 500, (place, response.text)
    if response.status_code >= 400 and response.headers["content-type"] == "application/problem+json":
        assert response.json()["detail"].isprintable(), place
    for line in log.lines:
        assert "traceback" not in json.loads(line), line
        assert line.isprintable()
        assert all(text.isprintable() for text in texts(json.loads(line))), line
    log.lines.clear()


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from (name, *texts(item))
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, str):
        yield value


@pytest.mark.slow
@pytest.mark.parametrize("new_federation", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("examples", EXAMPLES)
def test_no_parameter_ends_in_a_defect(asked: dict[str, Institution], log: Lines, examples: int) -> None:
    for parameter in (*OPERATIONS, *PAGE_OPERATIONS):
        method, path, operation = parameter.values
        hit(asked, log, method, path, operation, examples)  # type: ignore[arg-type]


GOOD = {
    "run": "run-1",
    "part": "decoder",
    "segment": "decoder",
    "verb": "pause",
    "from": "0",
    "after": "0",
    "wait": "0",
}
SWEEP = [
    *(str(number) for number in (-1, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**30)),
    *("9" * 5000, "1e999", "", "\x00", "run-1\x00", "\x1b[2J\nforged", "\u202e", "x" * 300, "%", "\ud7ff"),
]


def sweep(who: Institution, log: Lines, method: str, path: str, operation: dict[str, Any]) -> None:
    """One parameter after the other takes hostile values; the rest are such that the request gets as far as it can."""
    state = who.state() if who.name == "a" else None
    spec = canonical.decode(RoundSpec, state.spec.body).hash.hex() if state is not None and state.spec else "0" * 64
    parameters = operation.get("parameters", [])
    good = {one["name"]: GOOD.get(one["name"], "0") for one in parameters} | {"spec": spec}
    good |= dict.fromkeys(("model", "sha256"), "0" * 64)
    for parameter in parameters:
        for value in SWEEP:
            values = {**good, parameter["name"]: value}
            place = path
            for name in re.findall(r"{(\w+)}", path):
                place = place.replace(f"{{{name}}}", quote(values[name], safe=""))
            query = [one["name"] for one in parameters if one["in"] == "query"]
            query = [name for name in query if name == parameter["name"] or path.startswith("/v1/")]
            place += "?" + "&".join(f"{name}={quote(values[name], safe='')}" for name in query)
            request = who.signed(method.upper(), place, b"x" if method == "put" else b"")
            with who.http.stream(
                request.method, request.url, content=request.content, headers=request.headers
            ) as response:
                if "event-stream" not in response.headers.get("content-type", ""):
                    response.read()
            check(response, log, (method, place[:300]))


def hit(
    asked: dict[str, Institution], log: Lines, method: str, path: str, operation: dict[str, Any], examples: int
) -> None:
    who = asked[OPERATOR if "/operator/" in path else "a"]
    sweep(who, log, method, path, operation)

    @settings(FEW, max_examples=examples)
    @given(st.data())
    def one(data: st.DataObject) -> None:
        place, query = filled(path, operation.get("parameters", []), data.draw)
        if float_of(query.get("wait")) > 0:
            query["wait"] = "0"  # nobody waits in this test
        body, kind = content(operation, data.draw)
        headers = {"content-type": kind}
        text = data.draw(TEXTS).encode()
        if data.draw(st.booleans()) and b"\n" not in text and b"\r" not in text and b"\x00" not in text:
            headers |= {data.draw(st.sampled_from(["x-request-id", "range", "if-none-match", "last-event-id"])): text}  # type: ignore[dict-item]
        encoded = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
        target = place + (f"?{encoded}" if encoded else "")
        try:
            request = who.signed(method.upper(), target, body, headers)
        except HTTPMessageSignaturesException:  # no URL by its rules; a server may get it all the same
            request = who.http.build_request(method.upper(), target, content=body, headers=headers)
        try:
            with who.http.stream(request.method, request.url, content=body, headers=request.headers) as response:
                if "event-stream" not in response.headers.get("content-type", ""):
                    response.read()
        except httpx.LocalProtocolError:  # no client sends such a header
            return
        check(response, log, (method, place, query, body[:300]))

    one()


def float_of(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def test_the_bounds_of_a_run_hold_for_the_command_too(new_federation: NewFederation) -> None:
    federation = new_federation()
    for name in ("rounds", "epochs", "max_steps", "batch_size", "min_cohort"):
        with pytest.raises(Exception, match=name):
            federation.start_run(**{"name": "run-1", name: 2**31})


def test_every_text_of_a_line_of_the_log_is_plain(log: Lines) -> None:
    foreign = "\x1b[2J\n\u202eforged"
    try:
        raise ValueError(foreign)
    except ValueError:
        with noting(request_id=foreign):
            logging.getLogger("x").error("%s", foreign, extra={"fields": {"a": [foreign], foreign: 1}}, exc_info=True)
    (line,) = (json.loads(one) for one in log.lines)
    trace = line.pop("traceback").split("\n")
    assert all(one.startswith("  | ") and one.isprintable() for one in trace)
    assert all(text.isprintable() for text in texts(line))
