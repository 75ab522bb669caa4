"""Metrics and health of an institution: its own, at the address that was asked for, and not without the extra."""

import contextlib
import socket
import struct
import subprocess
import sys
import threading

import httpx
import pytest

from fedddpm.config import MetricsOptions
from fedddpm.errors import ConfigError
from fedddpm.monitoring import metrics_server
from fedddpm.monitoring.metrics_server import health, serving_metrics
from fedddpm.monitoring.reporter import Reporter
from fedddpm.monitoring.vitals import Activity, LiveVitals, Work
from fedddpm.training.settings import Progress
from fedddpm.transport.traffic import Traffic


def fetch(port, path, method="GET", host="127.0.0.1"):
    return httpx.request(method, f"http://{host}:{port}{path}")


def test_what_the_work_tells_is_on_the_page():
    reporter = Reporter()
    reporter.vitals.introduce("hospital-a", "cpu")
    with serving_metrics(MetricsOptions(port=0), reporter.vitals) as port:
        before = fetch(port, "/metrics").text
        assert "fedddpm_institution_round 0.0" not in before, "what is not known yet is left out"
        assert 'fedddpm_institution_phase{phase="starting"} 1.0' in before
        reporter.at("run-1", 2, 1)
        reporter.waiting("training started", Activity.TRAINING)
        reporter.training(2, Progress(0, 1, 30, 40, 0.25, 512.0))
        reporter.moved(Traffic(bytes_up=100, bytes_down=7), True)
        reporter.trained("trained", 0.5, 0.25, {})
        reporter.attempt_failed("again")
        reporter.round_ended("round 3", True, {})
        reporter.round_ended("round 4", False, {}, 0.75, 0.5)
        page = fetch(port, "/metrics").text
    for line in (
        'fedddpm_institution_info{device="cpu",institution="hospital-a",version="',
        'fedddpm_institution_phase{phase="training"} 1.0',
        'fedddpm_institution_phase{phase="starting"} 0.0',
        "fedddpm_institution_round 2.0",
        "fedddpm_institution_attempt 1.0",
        "fedddpm_institution_training_steps 30.0",
        "fedddpm_institution_training_steps_planned 40.0",
        "fedddpm_institution_training_loss 0.25",
        "fedddpm_institution_held_out_loss_before 0.5",
        "fedddpm_institution_held_out_loss_after 0.25",
        "fedddpm_institution_own_share 0.75",
        "fedddpm_institution_own_cosine 0.5",
        'fedddpm_institution_rounds_finished_total{in_mean="true"} 1.0',
        'fedddpm_institution_rounds_finished_total{in_mean="false"} 1.0',
        "fedddpm_institution_attempts_failed_total 1.0",
        "fedddpm_institution_sent_bytes_total 100.0",
        "fedddpm_institution_received_bytes_total 7.0",
        "fedddpm_institution_aggregator_last_contact_timestamp_seconds 1.",
        'fedddpm_institution_seconds_total{work="protocol"} 0.0',
        "process_resident_memory_bytes",
    ):
        assert line in page, line
    assert "device_memory" not in page


def test_an_aggregator_that_cannot_serve_is_no_contact():
    vitals = LiveVitals()
    vitals.away()
    vitals.moved(10, 10, served=False)
    assert (vitals.read().away, vitals.read().served_at, vitals.read().bytes_up) == (True, None, 10)
    vitals.moved(10, 10, served=True)
    assert not vitals.read().away
    assert vitals.read().served_at is not None


def test_work_under_way_counts_already(monkeypatch):
    now = [50.0]
    monkeypatch.setattr("fedddpm.monitoring.vitals.time.monotonic", lambda: now[0])
    vitals = LiveVitals()
    with vitals.busy(Work.TRAINING):
        now[0] += 4
        assert vitals.read().seconds[Work.TRAINING] == 4
    now[0] += 100
    with contextlib.suppress(OSError), vitals.busy(Work.PROTOCOL):
        now[0] += 2
        raise OSError
    assert dict(vitals.read().seconds) == {Work.TRAINING: 4, Work.PROTOCOL: 2}


def test_many_readers_see_whole_moments():
    vitals, torn, done = LiveVitals(), [], threading.Event()

    def read():
        while not done.is_set():
            now = vitals.read()
            if now.loss_before != now.loss_after or now.bytes_up != now.bytes_down:
                torn.append(now)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(2000):
        vitals.trained(number, number)
        vitals.moved(1, 1, served=True)
    done.set()
    for reader in readers:
        reader.join()
    assert torn == []
    assert vitals.read().bytes_up == 2000


def test_health_is_a_sign_of_life_lately(monkeypatch):
    now = [50.0]
    monkeypatch.setattr("fedddpm.monitoring.vitals.time.monotonic", lambda: now[0])
    vitals = LiveVitals()
    now[0] += 10_000
    assert health(vitals, 600) == ("200 OK", "starting\n"), "images may take hours to decode"
    vitals.doing(Activity.TRAINING)
    now[0] += 599
    assert health(vitals, 600)[0] == "200 OK"
    now[0] += 2
    assert health(vitals, 600) == ("503 Service Unavailable", "no sign of life for 601 s while training\n")
    vitals.beat()
    vitals.away()
    assert health(vitals, 600) == ("200 OK", "training, the aggregator is away\n")


def test_only_what_is_there_is_served():
    with serving_metrics(MetricsOptions(port=0), LiveVitals()) as port:
        assert fetch(port, "/healthz").text == "starting\n"
        assert fetch(port, "/healthz", "HEAD").status_code == 200
        assert fetch(port, "/").status_code == fetch(port, "/metrics/secret").status_code == 404
        assert fetch(port, "/metrics", "POST").status_code == fetch(port, "/healthz", "DELETE").status_code == 405
        with socket.create_connection(("127.0.0.1", port)) as silent:  # one that says nothing is in nobody's way
            assert fetch(port, "/healthz").status_code == 200
            silent.close()
    with pytest.raises(httpx.ConnectError):
        fetch(port, "/healthz")


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/"])
def test_no_name_that_is_not_known_is_answered_to(path):
    """A web page whose name leads to this address (DNS rebinding) sends that name."""
    with serving_metrics(MetricsOptions(port=0, names=("Hospital-a.example.org",)), LiveVitals()) as port:
        found = httpx.get(f"http://127.0.0.1:{port}{path}").status_code
        assert found in (200, 404)
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example", ""):
            answer = httpx.get(f"http://127.0.0.1:{port}{path}", headers={"Host": host})
            assert (answer.status_code, "python" in answer.text) == (421, False), host
        for host in (
            "localhost",
            "LOCALHOST:80",
            "10.42.0.7:9760",
            "[::1]:9760",
            "hospital-a.example.org",
            "localhost.",
        ):
            assert httpx.get(f"http://127.0.0.1:{port}{path}", headers={"Host": host}).status_code == found, host


def test_the_configured_host_is_a_known_name():
    with serving_metrics(MetricsOptions(port=0, host="localhost"), LiveVitals()) as port:
        assert fetch(port, "/healthz", host="localhost").status_code == 200
    with serving_metrics(MetricsOptions(port=0), LiveVitals()) as port, silent_clients(port, 1) as (old,):
        old.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")  # no browser leaves the header out
        assert b"starting" in b"".join(iter(lambda: old.recv(1000), b""))


def test_without_a_port_nothing_is_served():
    with serving_metrics(MetricsOptions(), LiveVitals()) as port:
        assert port is None
        assert "metrics" not in {thread.name for thread in threading.enumerate()}


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=f"127.0.0.1:{port} .*in use.*another --metrics-port"),
            serving_metrics(MetricsOptions(port=port), LiveVitals()),
        ):
            pass
    with (
        pytest.raises(ConfigError, match=r"no\.such\.host\.invalid:0"),
        serving_metrics(MetricsOptions(port=0, host="no.such.host.invalid"), LiveVitals()),
    ):
        pass


def test_ipv6_is_served_where_it_is_there():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with serving_metrics(MetricsOptions(port=0, host="::1"), LiveVitals()) as port:
        assert fetch(port, "/healthz", host="[::1]").status_code == 200


def test_the_missing_extra_is_named():
    code = (
        "import sys\nsys.modules['prometheus_client'] = None\n"
        "from fedddpm.config import MetricsOptions\nfrom fedddpm.monitoring.metrics_server import serving_metrics\n"
        "from fedddpm.monitoring.vitals import LiveVitals\n"
        "with serving_metrics(MetricsOptions(port=0), LiveVitals()): pass"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "(prometheus_client). Run: pip install 'fedddpm-sdk[metrics]'" in done.stderr
    without = code.replace("port=0", "")
    assert subprocess.run([sys.executable, "-c", without]).returncode == 0


@contextlib.contextmanager
def silent_clients(port, number):
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port), 5)) for _ in range(number)]


def hung_up(client):
    """Whether the server closes the connection before the test gives up."""
    try:
        return client.recv(100) == b""
    except ConnectionResetError:
        return True


def test_many_connections_at_once_are_hung_up_on(monkeypatch):
    monkeypatch.setattr(metrics_server, "MOST_AT_ONCE", 3)
    with serving_metrics(MetricsOptions(port=0), LiveVitals()) as port:
        before = threading.active_count()
        with silent_clients(port, 3) as clients:
            with silent_clients(port, 4) as more:
                assert all(hung_up(client) for client in more)
            assert threading.active_count() - before <= 3
            clients[0].sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert b"starting" in b"".join(iter(lambda: clients[0].recv(1000), b"")), "who was first is served"
        for _ in range(100):  # those who went away make room again
            with contextlib.suppress(httpx.TransportError):
                assert fetch(port, "/healthz").status_code == 200
                break
        else:
            pytest.fail("nobody is served any more")


@pytest.mark.parametrize("dribble", [b"", b"GET /healthz HTTP/1.0\r\nX: "])
def test_one_deadline_for_a_whole_request_and_no_trace_of_it(monkeypatch, capfd, dribble):
    monkeypatch.setattr(metrics_server, "SLOW_S", 0.5)
    with serving_metrics(MetricsOptions(port=0), LiveVitals()) as port, silent_clients(port, 1) as (client,):
        client.sendall(dribble)
        client.settimeout(0.05)
        for _ in range(100):
            try:
                assert client.recv(1) == b"", "no answer to half a request"
                break
            except TimeoutError:
                with contextlib.suppress(OSError):
                    client.sendall(b"x" if dribble else b"")
            except ConnectionResetError:
                break
        else:
            pytest.fail("it may dribble for ever")
        with socket.create_connection(("127.0.0.1", port)) as rude:  # resets in the middle of a request
            rude.sendall(b"GET /metrics")
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert fetch(port, "/healthz").status_code == 200
    assert capfd.readouterr().err == ""


def test_a_defect_of_the_metrics_is_a_line_of_the_log(monkeypatch, caplog, capfd):
    vitals = LiveVitals()
    with serving_metrics(MetricsOptions(port=0), vitals) as port:
        monkeypatch.setattr(vitals, "read", lambda: 1 / 0)
        assert fetch(port, "/metrics").status_code == 500
    (record,) = [record for record in caplog.records if getattr(record, "event", "") == "defect"]
    assert record.exc_info
    assert "Traceback" not in capfd.readouterr().err
