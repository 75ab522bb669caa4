"""Identity files: private, never overwritten, never shown."""

import base64
import stat

import pytest

from fedddpm.errors import ConfigError
from fedddpm.identity import Identity, load_public_key
from fedddpm_protocol.keys import fingerprint, verify


def test_a_saved_identity_is_private_and_comes_back(tmp_path):
    path = tmp_path / "a.key"
    identity = Identity.generate("hospital-a")
    identity.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = Identity.load(path)
    assert loaded == identity
    verify(identity.public_key, "join", b"body", loaded.key.sign("join", b"body"))
    assert loaded.fingerprint == fingerprint(identity.public_key)


def test_an_existing_key_is_never_overwritten(tmp_path):
    path = tmp_path / "a.key"
    Identity.generate("hospital-a").save(path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="not overwritten"):
        Identity.generate("hospital-a").save(path)
    assert path.read_bytes() == before


def test_the_seed_shows_up_in_no_text(tmp_path):
    identity = Identity.generate("hospital-a")
    shown = repr(identity) + str(identity) + repr(identity.key) + repr([identity])
    assert identity.key.seed.hex() not in shown
    path = tmp_path / "a.key"
    identity.save(path)
    path.write_text(path.read_text().replace('"public_key": "', '"public_key": "00'))
    with pytest.raises(ConfigError) as refusal:
        Identity.load(path)
    assert identity.key.seed.hex() not in str(refusal.value)
    assert refusal.value.__context__ is None or identity.key.seed.hex() not in str(refusal.value.__context__)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format": "fedddpm-identity-1"}', "\xff\xfe"])
def test_other_files_are_no_identity(tmp_path, content):
    path = tmp_path / "a.key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="not an identity file"):
        Identity.load(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        Identity.load(tmp_path / "missing.key")


@pytest.mark.parametrize("name", ["", "two words", "-dash", "x" * 65, "a/b"])
def test_ids_that_are_unsafe_in_urls_are_refused(name):
    with pytest.raises(ConfigError, match="member id"):
        Identity.generate(name)


def test_public_keys_are_read_in_every_form_people_use(tmp_path):
    key = Identity.generate("root").public_key
    forms = [key, key.hex(), key.hex().upper() + "\n", base64.b64encode(key).decode()]
    for number, text in enumerate([key.hex() + "\n", f'{{"public_key": "{key.hex()}"}}']):
        path = tmp_path / str(number)
        path.write_text(text)
        forms.append(path)
    assert [load_public_key(form) for form in forms] == [key] * len(forms)


@pytest.mark.parametrize("text", ["", "nothing-here", "00" * 31, "00" * 33, "x" * 5000])
def test_anything_else_is_no_public_key(text):
    with pytest.raises(ConfigError, match="coordinator"):
        load_public_key(text)
