"""What only an object store can meet: refused credentials, no bucket, plain HTTP, leftovers, an outage."""

from __future__ import annotations

import logging
import re
import threading
import traceback
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tests.support.s3_server import S3Server, objects_of

from fedddpm_aggregator.blobs.interface import BlobSettingsError, BlobsUnavailableError
from fedddpm_aggregator.blobs.store_choice import open_blobs

obstore = pytest.importorskip("obstore")
objects = pytest.importorskip("fedddpm_aggregator.blobs.objects")


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_refused_credentials_are_told_and_not_shown(
    s3_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(variable, "wrong-but-private")
    blobs = open_blobs(s3_url)
    said = [repr(blobs), str(vars(blobs)), *caplog.messages]
    for use in (
        lambda: blobs.put("x", b"1"),
        lambda: blobs.read("x"),
        lambda: blobs.exists("x"),
        blobs.check_writable,
        lambda: blobs.remove("x"),
        lambda: blobs.folders("x"),
    ):
        with pytest.raises(BlobSettingsError, match="refuses the credentials; check AWS_ACCESS_KEY_ID") as caught:
            use()
        said.append("".join(traceback.format_exception(caught.value)))
    assert "wrong-but-private" not in "".join(said)
    assert "Signature" not in "".join(said)


def test_a_missing_bucket_is_no_missing_blob(s3_url: str) -> None:
    blobs = open_blobs(s3_url.replace("fedddpm-tests", "another-bucket"))
    for use in (lambda: blobs.read("x"), lambda: blobs.folders("x"), lambda: blobs.remove("x")):
        with pytest.raises(BlobSettingsError, match="there is no such bucket"):
            use()


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///prefix", "s3://key:secret-word@bucket/x", "s3://bucket/x?secret-word=1"]
)
def test_an_odd_url_is_refused_and_not_repeated(s3_url: str, url: str) -> None:
    with pytest.raises(BlobSettingsError) as caught:
        open_blobs(url)
    assert "secret-word" not in str(caught.value)


def test_plain_http_is_for_this_machine_or_on_request(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://storage.example.org:9000")
    with pytest.raises(BlobSettingsError, match="without TLS"):
        open_blobs(s3_url)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    open_blobs(s3_url)


class Overwriting(BaseHTTPRequestHandler):
    """An object store that takes every write, whatever the condition."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(b"", ETag='"0"')

    def do_POST(self) -> None:  # deletions
        keys = re.findall(rb"<Key>.*?</Key>", self.rfile.read(int(self.headers["content-length"])))
        self._answer(b"<DeleteResult><Deleted>%s</Deleted></DeleteResult>" % b"".join(keys))

    def _answer(self, body: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_store_that_overwrites_is_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Overwriting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
            monkeypatch.setenv(name, "some")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(BlobSettingsError, match=r"s3://any/x: the object store writes over what is there"):
            open_blobs("s3://any/x").check_writable()
        server.shutdown()


def test_large_blobs_leave_no_temporary_objects(s3_url: str) -> None:
    blobs = open_blobs(s3_url)
    for _ in range(2):
        with blobs.create_or_keep("large") as file:
            file.write(b"x" * (objects.ONE_REQUEST_BYTES + 1))
    blobs.check_writable()
    assert objects_of(s3_url) == ["large"]


def test_leftovers_go_when_no_writer_can_be_at_them(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = open_blobs(s3_url)
    bucket, prefix = s3_url.removeprefix("s3://").split("/")
    store = obstore.store.S3Store(bucket, prefix=prefix, client_options={"allow_http": True})
    obstore.put(store, ".writing-/0123", b"a writer was killed before it copied this")
    blobs.put("a/0", b"data")
    blobs.remove_leftovers()
    assert objects_of(s3_url) == [".writing-/0123", "a/0"]  # another replica may be writing it
    monkeypatch.setattr(objects, "LEFTOVER_AGE", timedelta(seconds=-60))
    blobs.remove_leftovers()
    assert objects_of(s3_url) == ["a/0"]


def test_a_store_that_is_away_is_told_as_such_and_comes_back(s3_server: S3Server, s3_url: str) -> None:
    blobs = open_blobs(s3_url)
    blobs.put("a", b"data")
    s3_server.kill_gateway()
    try:
        for use in (lambda: blobs.read("a"), lambda: blobs.exists("a"), lambda: blobs.put("b", b"2")):
            with pytest.raises(BlobsUnavailableError, match="try again later"):
                use()
    finally:
        s3_server.start_gateway()
    blobs.put("b", b"2")
    assert (blobs.read("a"), blobs.read("b")) == (b"data", b"2")
