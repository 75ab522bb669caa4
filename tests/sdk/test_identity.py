"""Identity files: private, never overwritten, never shown."""

import base64
import json
import stat
import traceback
from pathlib import Path

import pytest

from fedddpm.config import NetworkOptions, load_config
from fedddpm.errors import ConfigError
from fedddpm.identity import Identity, load_public_key
from fedddpm.transport.connection import Connection
from fedddpm.transport.tls import tls_context
from fedddpm_protocol.primitives.keys import fingerprint, verify


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


def saved(tmp_path):
    path = tmp_path / "a.key"
    Identity.generate("hospital-a").save(path)
    return path.read_text()


def told(call):
    """The whole trace of the refusal, with all that it was caused by."""
    with pytest.raises(ConfigError) as refusal:
        call()
    return "".join(traceback.format_exception(refusal.value))


def test_a_private_key_in_place_of_a_public_one_is_not_shown(tmp_path):
    private = saved(tmp_path)
    pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA\n-----END PRIVATE KEY-----\n"
    for text in (private, private.encode(), json.dumps(json.loads(private)), pem):
        shown = told(lambda text=text: load_public_key(text))
        assert "the content of a private key file (not shown)" in shown
        assert "root.pub" in shown
        assert json.loads(private)["seed"] not in shown
        assert "MC4CAQ" not in shown
    seed = json.loads(private)["seed"]
    for text in (seed[:-1], *(base64.b64encode(bytes([n]) + bytes.fromhex(seed)).decode() for n in (0, 252, 255))):
        shown = told(lambda text=text: load_public_key(text))
        assert text not in shown
        assert "the digits of a key (not shown)" in shown
    assert "'keys/root.pub' is neither" in told(lambda: load_public_key("keys/root.pub"))


def test_the_text_of_a_key_in_place_of_its_path_is_not_shown(tmp_path):
    private = saved(tmp_path)
    seed = json.loads(private)["seed"]
    texts = [private, json.dumps({**json.loads(private), "note": "x" * 300})]
    for text in texts:
        settings = tmp_path / "site.toml"
        settings.write_text(
            f"aggregator_url = 'https://a.example'\nidentity = '''{text}'''\nfederation_root = '''{text}'''\n"
            "data = 'cifar10'\nstate_dir = 'state'\n"
        )
        config = load_config(settings)
        for call in (
            lambda config=config: Identity.load(config.identity),
            lambda config=config: load_public_key(config.federation_root),
            lambda text=text: tls_context(NetworkOptions(client_certificate=Path(text))),
            lambda text=text: tls_context(NetworkOptions(ca_bundle=Path(text))),
            lambda text=text: load_config(Path(text)),
        ):
            shown = told(call)
            assert seed not in shown
            assert "private key file (not shown)" in shown


@pytest.mark.parametrize("proxy", ["socks9://us:hush-hush@p:1", "http://us:hush-hush@p:port", "us:hush-hush@p"])
def test_the_password_of_a_proxy_is_not_shown(proxy):
    options = NetworkOptions(proxy=proxy)
    assert "hush-hush" not in repr(options)
    shown = told(lambda: Connection("https://a.example", Identity.generate("a"), "a", options))
    assert "password not shown" in shown
    assert "hush-hush" not in shown
    shown = told(lambda: load_config(None, {"network": {"proxy": proxy, "client_key": "k"}}))
    assert "hush-hush" not in shown


def test_a_proxy_of_the_environment_is_named_without_its_password(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://us:hush-hush@p:port")
    shown = told(lambda: Connection("https://a.example", Identity.generate("a"), "a", NetworkOptions()))
    assert "the proxy of the environment (HTTPS_PROXY" in shown
    assert "hush-hush" not in shown
