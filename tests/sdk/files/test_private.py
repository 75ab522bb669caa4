"""Who may be able to open a private key: PostgreSQL's rule, also for secrets as Kubernetes mounts them."""

import contextlib
import os
import tempfile
from pathlib import Path

import pytest

from fedddpm.config import NetworkOptions
from fedddpm.errors import ConfigError
from fedddpm.files.private import private_name, refuse_open
from fedddpm.identity import Identity
from fedddpm.transport.tls import tls_context

ROOT, US, OTHER, GROUP = 0, 10001, 10002, 10003


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "a.key"
    Identity.generate("hospital-a").save(path)
    return path


@pytest.fixture
def open_key():
    """A key in a folder that every user of this machine may enter."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.key"
        Path(folder).chmod(0o755)
        Identity.generate("hospital-a").save(path)
        yield path


@contextlib.contextmanager
def another_user(user, group):
    """Be somebody else for a while."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(group)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.mark.parametrize(
    ("mode", "owner", "user"),
    [
        (0o600, US, US),
        (0o400, US, US),
        (0o700, US, US),
        (0o600, ROOT, ROOT),
        (0o640, ROOT, US),
        (0o440, ROOT, US),  # a secret with fsGroup
    ],
)
def test_what_others_cannot_open_is_accepted(mode, owner, user):
    refuse_open(mode, owner, user, Path("a.key"), "the identity")


@pytest.mark.parametrize(
    ("mode", "owner", "user", "who", "cure"),
    [
        (0o640, US, US, "its group", "chmod 600"),
        (0o440, ROOT, ROOT, "its group", "not as root"),
        (0o660, ROOT, US, "its group", "chmod 640"),
        (0o650, ROOT, US, "its group", "chmod 640"),
        (0o644, US, US, "everybody", "chmod 600"),
        (0o444, ROOT, US, "everybody", "defaultMode 0440"),
        (0o604, ROOT, US, "everybody", "chmod 640"),
    ],
)
def test_what_others_can_open_is_refused(mode, owner, user, who, cure):
    with pytest.raises(ConfigError, match=f"{who}.*mode {mode:04o}.*{cure}"):
        refuse_open(mode, owner, user, Path("a.key"), "the identity")


@pytest.mark.parametrize(("mode", "user"), [(0o600, US), (0o440, US), (0o400, ROOT)])
def test_the_key_of_a_third_user_is_refused(mode, user):
    with pytest.raises(ConfigError, match=rf"belongs to user {OTHER}.*this is user {user}\. Run: chown {user} a.key"):
        refuse_open(mode, OTHER, user, Path("a.key"), "the identity")


def test_the_links_of_a_mounted_secret_are_followed(tmp_path, key):
    """``identity.key -> ..data/identity.key``, ``..data -> ..2026_1``: the file's own mode counts, not the link's."""
    real = tmp_path / "..2026_1"
    real.mkdir()
    key.rename(real / "identity.key")
    (tmp_path / "..data").symlink_to("..2026_1")
    (tmp_path / "identity.key").symlink_to("..data/identity.key")
    assert Identity.load(tmp_path / "identity.key").member_id == "hospital-a"
    (real / "identity.key").chmod(0o444)
    with pytest.raises(ConfigError, match="everybody"):
        Identity.load(tmp_path / "identity.key")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_service_reads_the_key_that_root_gave_to_its_group(open_key):
    os.chown(open_key, ROOT, GROUP)
    open_key.chmod(0o440)
    with another_user(US, GROUP):
        assert Identity.load(open_key).member_id == "hospital-a"
    with another_user(US, OTHER), pytest.raises(ConfigError, match=r"Permission denied.*this is user 10001") as refusal:
        Identity.load(open_key)
    assert "keygen" not in str(refusal.value)  # there is a key
    os.chown(open_key, OTHER, GROUP)
    with another_user(US, GROUP), pytest.raises(ConfigError, match=f"belongs to user {OTHER}"):
        Identity.load(open_key)


def test_a_missing_key_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match=r"No such file.*fedddpm keygen"):
        Identity.load(tmp_path / "none.key")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="Not a directory"):
        Identity.load(tmp_path / "file" / "a.key")


def test_the_key_of_the_client_certificate_is_kept_by_the_same_rule(tmp_path):
    certificate, key = tmp_path / "client.pem", tmp_path / "client.key"
    for path in (certificate, key):
        path.write_text("not PEM")
        path.chmod(0o644)
    with pytest.raises(ConfigError, match=rf"everybody.*the client's key {key}"):
        tls_context(NetworkOptions(client_certificate=certificate, client_key=key))
    with pytest.raises(ConfigError, match=rf"everybody.*the client's key {certificate}"):  # it holds both
        tls_context(NetworkOptions(client_certificate=certificate))
    key.chmod(0o600)
    with pytest.raises(ConfigError, match="cannot be used"):
        tls_context(NetworkOptions(client_certificate=certificate, client_key=key))
    key.unlink()
    with pytest.raises(ConfigError, match=rf"the client's key {key} cannot be read \(No such file.*Give the paths"):
        tls_context(NetworkOptions(client_certificate=certificate, client_key=key))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_client_key_that_this_user_cannot_read_is_said(open_key):
    os.chown(open_key, ROOT, GROUP)
    open_key.chmod(0o440)
    options = NetworkOptions(client_certificate=open_key)
    with another_user(US, OTHER), pytest.raises(ConfigError, match=r"client's key .*Permission denied.*user 10001"):
        tls_context(options)


def test_the_judged_file_is_the_one_that_is_read(key, tmp_path):
    """A file put in its place meanwhile is not read."""
    judged, other = key.read_bytes(), tmp_path / "other"
    other.write_text("of somebody else")
    with private_name(key, "the client's key", "") as name:
        other.replace(key)
        if not name.startswith("/dev/fd/"):
            pytest.skip("this system has no names for open files")
        assert Path(name).read_bytes() == judged
    assert not Path(name).exists()
