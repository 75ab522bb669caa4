"""Who may read a secret's file: its owner alone, or a group that root chose, as with a secret mounted in a pod."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedddpm_aggregator.dashboard.access import read_password
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.security.key_files import (
    OPERATOR_PURPOSE,
    ROOT_PURPOSE,
    SERVER_PURPOSE,
    KeyFileError,
    read_key,
    read_public_key,
    write_key,
)
from fedddpm_aggregator.security.private_files import PrivateFileError, read_private
from fedddpm_protocol.primitives.keys import SigningKey

ANOTHER = 1001
NOBODY, GROUP = 65534, 4711


def test_every_secret_is_read_by_the_rule(tmp_path: Path) -> None:
    for purpose in (SERVER_PURPOSE, ROOT_PURPOSE, OPERATOR_PURPOSE):
        path = tmp_path / f"{purpose}.key"
        write_key(path, key := SigningKey.generate(), purpose)
        assert read_key(path, purpose).public_key == key.public_key
        path.chmod(0o644)
        with pytest.raises(KeyFileError, match=r"everybody .* may open the file .* \(mode 0644\)\. Run: chmod 600"):
            read_key(path, purpose)
    password = tmp_path / "password"
    password.write_text("correct horse battery\n")
    password.chmod(0o640)
    with pytest.raises(OperatorError, match=r"--page-password-file: its group may open .* \(mode 0640\)"):
        read_password(password)
    password.chmod(0o400)
    assert read_password(password) == "correct horse battery"


def test_a_link_has_the_rights_of_what_it_leads_to(tmp_path: Path) -> None:
    """A mounted secret is a link to a link (``..data``) to a file."""
    version = tmp_path / "..2026_01_01"
    version.mkdir()
    secret = version / "server.key"
    secret.write_text("secret")
    (tmp_path / "..data").symlink_to(version.name)
    (tmp_path / "server.key").symlink_to("..data/server.key")
    secret.chmod(0o600)
    assert read_private(tmp_path / "server.key") == "secret"
    secret.chmod(0o604)
    with pytest.raises(PrivateFileError, match="everybody on this machine may open"):
        read_private(tmp_path / "server.key")


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "bytes").chmod(0o600)
    for name, reason in (("missing", "No such file"), (".", "Is a directory"), ("bytes", "it is no text")):
        with pytest.raises(PrivateFileError, match=reason):
            read_private(tmp_path / name)


@contextlib.contextmanager
def somebody_else() -> Iterator[None]:
    """This process as an unprivileged user of the group GROUP."""
    groups = os.getgroups()
    os.setgroups([GROUP])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand a file to a group and become somebody else")
def test_a_secret_as_kubernetes_mounts_it() -> None:
    folder = Path(tempfile.mkdtemp(prefix="fedddpm-secret-"))  # pytest's own folders are closed to others
    try:
        folder.chmod(0o711)
        secret = folder / "server.key"
        secret.write_text("secret")
        os.chown(secret, 0, GROUP)
        for mode in (0o440, 0o640):
            secret.chmod(mode)
            with somebody_else():
                assert read_private(secret) == "secret"
        secret.chmod(0o444)
        with somebody_else(), pytest.raises(PrivateFileError, match=r"chmod 640 .* defaultMode 0440"):
            read_private(secret)
        secret.chmod(0o400)
        with somebody_else(), pytest.raises(PrivateFileError, match="Permission denied"):
            read_private(secret)
        secret.chmod(0o440)
        with pytest.raises(PrivateFileError, match="chmod 600"):  # as root nobody needs the group
            read_private(secret)
    finally:
        shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand a file to somebody else")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "server.key"
    write_key(path, SigningKey.generate(), SERVER_PURPOSE)
    os.chown(path, ANOTHER, GROUP)
    with pytest.raises(
        KeyFileError, match=r"belongs to user 1001, who may open and change it; this is user 0\. Run: chown 0 "
    ):
        read_key(path, SERVER_PURPOSE)


def test_a_public_key_is_given_as_digits_or_as_a_file(tmp_path: Path) -> None:
    key = SigningKey.generate()
    write_key(tmp_path / "root.key", key, ROOT_PURPOSE)
    assert read_public_key(key.public_key.hex()) == key.public_key
    assert read_public_key(str(tmp_path / "root.pub")) == key.public_key
    with pytest.raises(KeyFileError, match="is the federation's private root key"):
        read_public_key(str(tmp_path / "root.key"))
    for text in ("zz", key.public_key.hex()[:-1], str(tmp_path / "missing"), str(tmp_path), "", "a\0b", "a" * 5000):
        with pytest.raises(KeyFileError, match="64 hex digits"):
            read_public_key(text)


def test_a_file_whose_name_may_be_a_key_keeps_its_reason(tmp_path: Path) -> None:
    path = tmp_path / ("0f" * 32)
    path.mkdir()
    with pytest.raises(
        KeyFileError, match=r"given as what may be the digits of a key \(not shown\), cannot be read: Is a dir"
    ):
        read_key(path, ROOT_PURPOSE)
