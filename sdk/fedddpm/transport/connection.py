"""One signed HTTPS connection to the aggregator: patience, problem documents, counted bytes.

Every endpoint is idempotent, so every request may be repeated. An aggregator that is away, overloaded or out of disk
is waited for with exponential backoff and jitter; anything it says on purpose becomes a typed error.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from fedddpm.config import NetworkOptions
from fedddpm.errors import ConfigError
from fedddpm.identity import Identity
from fedddpm.transport.connect_failures import why_no_answer
from fedddpm.transport.poll_length import PollLength
from fedddpm.transport.problems import CLOCK_ADVICE, ProblemError, UnreachableError, problem_error, read_problem
from fedddpm.transport.replies import REPLY, WORTH_WAITING, BytesSoFar, parse, read_reply, served, write_stream
from fedddpm.transport.request_signing import RequestSigner
from fedddpm.transport.tls import tls_context
from fedddpm.transport.traffic import Meter, Traffic
from fedddpm_protocol.untrusted.bounds import NOTHING, Bound, bound_of
from fedddpm_protocol.untrusted.redaction import shown_url
from fedddpm_protocol.wire.messages import Message

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 20.0  # well within a phase, so that whoever waits out an outage is not late for the session
_END_OF_TIME = 2.0**33  # Unix seconds, in the year 2242
_RANDOM = secrets.SystemRandom()


@dataclass(frozen=True)
class Outage:
    """Why a request is being repeated."""

    reason: str
    since_s: float
    retry_in_s: float


class Connection:
    """Sends signed requests; a context manager.

    ``on_outage`` is told before each wait and with None when the aggregator answers again; ``on_warning`` gets one
    sentence for the user; ``on_traffic`` the bytes of each answered request, and whether it was served; ``on_piece`` is
    called for every piece of an answer, also for the signs of life in a poll, unless it says that it cannot be served.
    """

    def __init__(
        self,
        base_url: str,
        identity: Identity,
        member_id: str,
        options: NetworkOptions,
        *,
        on_outage: Callable[[Outage | None], None] = lambda outage: None,
        on_warning: Callable[[str], None] = lambda text: None,
        on_traffic: Callable[[Traffic, bool], None] = lambda traffic, served: None,
        on_piece: Callable[[], None] = lambda: None,
    ) -> None:
        self.meter = Meter()
        self.member_id = member_id
        self._who = f"{member_id!r} with the key {identity.fingerprint}"
        self._options = options
        self._on_outage, self._on_warning, self._on_traffic = on_outage, on_warning, on_traffic
        self._on_piece = on_piece
        self._signer = RequestSigner(identity, member_id)
        self._base_url = base_url
        self._answered = False  # whether anything ever came from there
        self._polls = PollLength(options.longest_silence_s)
        self._http = _http_client(base_url, options, self._signer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, reply: type[REPLY], path: str, params: Mapping[str, str | float] | None = None) -> REPLY:
        """GET a JSON reply; TransportError if it is not what the interface promises."""
        response = self._patiently(lambda: self._send("GET", path, bound_of(reply), params=params))
        return parse(reply, response)

    def poll(self, reply: type[REPLY], path: str, params: Mapping[str, str | float], wait_s: float) -> REPLY:
        """GET a JSON reply that waits up to ``wait_s`` seconds for news; the aggregator sends signs of life meanwhile.

        Where something on the way keeps those back, or ends long answers, polls are shorter from then on. The first
        that is cut like this is no outage; if the shorter one fails too, it is.
        """
        cut = False

        def attempt() -> httpx.Response:
            nonlocal cut
            while True:
                wait = self._polls.begin(wait_s)
                try:
                    response = self._send("GET", path, bound_of(reply), params={**params, "wait": wait})
                except (httpx.TransportError, ProblemError) as error:
                    if not self._polls.cut(error) or cut:
                        raise
                    cut = True
                else:
                    self._polls.passed()
                    return response

        return parse(reply, self._patiently(attempt))

    def ask(self, reply: type[REPLY], path: str, message: Message) -> REPLY:
        """POST a message that has a JSON reply; TransportError as of :meth:`get`."""
        return parse(reply, self._post(path, message, bound_of(reply)))

    def post(self, path: str, message: Message) -> None:
        """POST a message."""
        self._post(path, message, NOTHING)

    def _post(self, path: str, message: Message, bound: Bound) -> httpx.Response:
        body = message.model_dump_json().encode()
        headers = {"Content-Type": "application/json"}
        return self._patiently(lambda: self._send("POST", path, bound, content=body, headers=headers))

    def put(self, path: str, data: bytes) -> None:
        """PUT raw bytes."""
        headers = {"Content-Type": "application/octet-stream"}
        self._patiently(lambda: self._send("PUT", path, NOTHING, content=data, headers=headers))

    def fetch(self, path: str, most_bytes: int) -> bytes:
        """GET at most ``most_bytes`` raw bytes into memory; the caller checks what they are."""
        return self._patiently(lambda: self._send("GET", path, Bound(most_bytes, 0))).content

    def download(self, path: str, target: Path, most_bytes: int, on_bytes: BytesSoFar) -> None:
        """GET at most ``most_bytes`` raw bytes into ``target``; continues a broken download where it stopped.

        ``on_bytes`` gets bytes so far and bytes in all (0 when unknown). The caller checks the content's hash.
        """
        target.unlink(missing_ok=True)
        self._patiently(lambda: self._download_rest(path, target, most_bytes, on_bytes))

    # --- one try -----------------------------------------------------------------------------------------------------

    def _send(
        self,
        method: str,
        path: str,
        bound: Bound,
        *,
        params: Mapping[str, str | float] | None = None,
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        everything = {"Accept-Encoding": "identity", **(headers or {})}
        with self._stream(method, path, params=params, content=content, headers=everything) as stream:
            try:
                response = read_reply(stream, self._pieces(stream), bound)
            finally:
                self._count(stream)
        if response.is_error or response.is_redirect:
            raise self._problem(response)
        return response

    def _download_rest(self, path: str, target: Path, most_bytes: int, on_bytes: BytesSoFar) -> httpx.Response:
        have = target.stat().st_size if target.exists() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with self._stream("GET", path, headers=headers) as response:
            try:
                if response.is_error or response.is_redirect:
                    refusal = read_reply(response, self._pieces(response), NOTHING)
                    if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                        target.unlink(missing_ok=True)
                    raise self._problem(refusal)
                have = have if response.status_code == httpx.codes.PARTIAL_CONTENT else 0
                write_stream(response, self._pieces(response), target, have, most_bytes, on_bytes)
            finally:
                self._count(response)
        return response

    @contextmanager
    def _stream(self, method: str, path: str, **request: Any) -> Iterator[httpx.Response]:
        """One request and what comes back; httpx.TransportError also for heads that end in an error of the library."""
        try:
            with self._http.stream(method, path, **request) as response:
                yield response
        except (ValueError, OverflowError, httpx.InvalidURL, httpx.StreamError) as error:
            raise httpx.RemoteProtocolError(f"its answer makes no sense ({type(error).__name__})") from error

    def _pieces(self, response: httpx.Response) -> Iterator[bytes]:
        """What comes, as it comes."""
        for piece in response.iter_raw():
            if served(response):
                self._on_piece()
            yield piece

    def _count(self, response: httpx.Response) -> None:
        request = response.request
        sent = len(request.method) + len(request.url.raw_path) + _header_bytes(request.headers) + len(request.content)
        received = response.num_bytes_downloaded + _header_bytes(response.headers)
        moved = Traffic(bytes_up=sent, bytes_down=received)
        self.meter.add(moved)
        self._on_traffic(moved, served(response))

    # --- patience ----------------------------------------------------------------------------------------------------

    def _patiently(self, attempt: Callable[[], httpx.Response]) -> httpx.Response:
        started, delay, corrected = time.monotonic(), FIRST_DELAY_S, False
        while True:
            try:
                response = attempt()
            except httpx.TransportError as error:
                untested = not self._answered and self._options.proxy is None
                reason, advised = why_no_answer(error, self._base_url, may_be_other_scheme=untested), 0.0
            except ProblemError as problem:
                self._answered = True
                if problem.code in ("clock-skew", "replayed") and not corrected:
                    corrected = True
                    continue
                if problem.status not in WORTH_WAITING:
                    raise
                reason, advised = problem.happened, problem.retry_after_s
            else:
                self._answered = True
                if delay > FIRST_DELAY_S:
                    self._on_outage(None)
                return response
            since = time.monotonic() - started
            if since >= self._options.patience_s:
                raise UnreachableError(
                    f"the aggregator {self._base_url} did not serve this institution for {since:.0f} s ({reason})",
                    "Check the address, the network and the proxy, then start again: nothing is lost",
                )
            wait = max(advised, delay * _RANDOM.uniform(0.5, 1.0))
            self._on_outage(Outage(reason, since, wait))
            time.sleep(min(wait, max(0.1, self._options.patience_s - since)))
            delay = min(2 * delay, LONGEST_DELAY_S)

    # --- what went wrong ---------------------------------------------------------------------------------------------

    def _problem(self, response: httpx.Response) -> ProblemError:
        problem = read_problem(response.content)
        if problem is not None and problem.code == "clock-skew" and 0 < (problem.server_time or 0) < _END_OF_TIME:
            offset = self._signer.correct_clock(problem.server_time or 0.0)
            side = "behind" if offset > 0 else "ahead"
            self._on_warning(f"this machine's clock is {abs(offset):.0f} s {side}. {CLOCK_ADVICE}")
        error = problem_error(problem, str(response.request.url), response.status_code, self._who)
        seconds = response.headers.get("Retry-After", "")
        error.retry_after_s = min(float(seconds), LONGEST_DELAY_S) if seconds.isdecimal() else 0.0
        return error


def _http_client(base_url: str, options: NetworkOptions, signer: RequestSigner) -> httpx.Client:
    timeout = httpx.Timeout(options.read_timeout_s, connect=options.connect_timeout_s)
    try:
        return httpx.Client(
            base_url=base_url, auth=signer, verify=tls_context(options), proxy=options.proxy, timeout=timeout
        )
    except (ValueError, ImportError, httpx.InvalidURL):  # their text may hold a piece of the password
        raise ConfigError(f"{_proxy_shown(options.proxy)} cannot be used", "Use http://host:port") from None


def _proxy_shown(proxy: str | None) -> str:
    """The proxy without its credentials."""
    if proxy is None:
        return "the proxy of the environment (HTTPS_PROXY, HTTP_PROXY or ALL_PROXY)"
    return f"the proxy {shown_url(proxy)!r}{' (user and password not shown)' if '@' in proxy else ''}"


def _header_bytes(headers: httpx.Headers) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers.raw)
