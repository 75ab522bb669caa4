"""Settings: arguments over the file over the defaults, and every mistake named."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from fedddpm.config import LocalPolicyOptions, NetworkOptions, load_config
from fedddpm.errors import ConfigError
from fedddpm_protocol.agreement.terms import MOST_MOMENTUM

REQUIRED = {
    "aggregator_url": "https://aggregator.example.org/",
    "identity": "a.key",
    "federation_root": "00" * 32,
    "data": "fashion-mnist",
    "state_dir": "state",
}


def toml(tmp_path, text):
    path = tmp_path / "site.toml"
    lines = "\n".join(f"{name} = {value!r}" for name, value in REQUIRED.items())
    path.write_text(f"{lines}\n{text}")
    return path


def test_defaults_are_the_careful_ones():
    config = load_config(overrides=REQUIRED)
    assert config.aggregator_url == "https://aggregator.example.org"
    assert config.policy == LocalPolicyOptions()
    assert config.policy.min_cohort == 3
    assert not config.policy.allow_two_party
    assert not config.policy.allow_weights
    floors = (config.policy.min_images, config.policy.min_steps, config.policy.min_images_seen)
    assert floors == (32, 4, 128)
    assert (config.policy.max_learning_rate, config.policy.max_clip_norm) == (0.01, 100.0)
    assert config.policy.max_outer_momentum == MOST_MOMENTUM
    assert not config.after_restore
    assert not config.stand_by
    assert (config.metrics.port, config.metrics.host) == (None, "127.0.0.1")


def test_arguments_win_over_the_file_setting_by_setting(tmp_path):
    path = toml(tmp_path, "seed = 7\nholdout = 0.2\n[policy]\nmin_cohort = 5\nc_max = 2\n[network]\npatience_s = 60")
    config = load_config(path, {"seed": 9, "holdout": None, "policy": {"c_max": 1, "min_cohort": None}})
    assert (config.seed, config.holdout) == (9, 0.2)
    assert (config.policy.min_cohort, config.policy.c_max) == (5, 1)
    assert config.network.patience_s == 60
    config = load_config(path, {"network": NetworkOptions(poll_s=1)})
    assert (config.network.poll_s, config.network.patience_s) == (1, 60)


def test_paths_in_a_file_start_at_the_file(tmp_path):
    (tmp_path / "root.pub").write_text("00" * 32)
    (tmp_path / "pictures").mkdir()
    path = toml(tmp_path, 'data_root = "sets"\n[network]\nca_bundle = "ca.pem"')
    text = path.read_text().replace("'fashion-mnist'", "'pictures'").replace(repr("00" * 32), "'root.pub'")
    path.write_text(text)
    config = load_config(path)
    assert config.identity == tmp_path / "a.key"
    assert config.state_dir == tmp_path / "state"
    assert config.data == str(tmp_path / "pictures")
    assert config.federation_root == str(tmp_path / "root.pub")
    assert config.network.ca_bundle == tmp_path / "ca.pem"
    assert load_config(path, {"data": "fashion-mnist"}).data == "fashion-mnist"
    assert load_config(path, {"state_dir": Path("here")}).state_dir == Path("here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aggregator_url": "ftp://a.example"}, "aggregator_url.*https://"),
        ({"aggregator_url": "aggregator.example.org"}, "aggregator_url.*https://"),
        ({"aggregator_url": "https://user:secret@a.example"}, "neither a query nor credentials"),
        ({"holdout": 1.5}, "holdout.*less than 1"),
        ({"surprise": 1}, "surprise.*unknown"),
        ({"policy": {"min_cohort": 1}}, "policy.min_cohort"),
        ({"policy": {"min_cohort": 2}}, "allow_two_party"),
        ({"policy": {"preset": "huge"}}, "policy.preset"),
        ({"policy": {"min_steps": 0}}, "policy.min_steps"),
        ({"policy": {"max_steps": 3}}, "max_steps = 3 ends every training below min_steps = 4"),
        ({"network": {"read_timeout_s": 5}}, "network.read_timeout_s"),
        ({"network": {"client_key": "key.pem"}}, "client_certificate"),
        ({"image_size": 4}, "image_size"),
        ({"metrics": {"port": 70000}}, "metrics.port"),
        ({"metrics": {"prot": 1}}, "metrics.prot.*unknown"),
        ({"samples": {"count": -1}}, "samples.count"),
        ({"samples": {"every": 0}}, "samples.every"),
        ({"samples": {"steps": 1}}, "samples.steps"),
        ({"samples": {"max_share": 0}}, "samples.max_share"),
        ({"observe": {"tensorboard": "s3://bucket/runs"}}, "observe.tensorboard.*folder of this machine"),
        ({"observe": {"wandb": "runs"}}, "observe.wandb.*unknown"),
        ({"log_format": "xml"}, "log_format"),
        ({"stand_by": "perhaps"}, "stand_by"),
    ],
)
def test_every_mistake_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        load_config(overrides={**REQUIRED, **change})


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_what_is_missing_is_named(name):
    with pytest.raises(ConfigError, match=f"{name}.*missing"):
        load_config(overrides={key: value for key, value in REQUIRED.items() if key != name})


def test_files_that_are_no_settings_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "missing.toml")
    path = tmp_path / "site.toml"
    path.write_text("seed = = 1")
    with pytest.raises(ConfigError, match=r"not valid TOML.*line 1"):
        load_config(path)


REMOTE = ("https://mlflow.example", "databricks://here", "postgresql://u:secret@db/x", "file://server/x", "s3://b/x")


@pytest.mark.parametrize("target", REMOTE)
def test_an_mlflow_server_is_refused_unless_it_is_allowed_aloud(target):
    with pytest.raises(ConfigError, match=r"observe.*a server.*allow_remote = true") as refused:
        load_config(overrides={**REQUIRED, "observe": {"mlflow": target}})
    assert "secret" not in str(refused.value)
    config = load_config(overrides={**REQUIRED, "observe": {"mlflow": target, "allow_remote": True}})
    assert config.observe.mlflow == target
    assert "secret" not in repr(config)


def test_an_mlflow_store_of_this_machine_is_taken(tmp_path):
    for target in ("sqlite:///a.db", "sqlite:////srv/a.db", "file:///srv/runs", "FILE:/srv/runs", "file://localhost/x"):
        assert load_config(overrides={**REQUIRED, "observe": {"mlflow": target}}).observe.mlflow == target
    path = toml(tmp_path, '[observe]\nmlflow = "runs"\ntensorboard = "curves"')
    observe = load_config(path).observe
    assert (observe.mlflow, observe.tensorboard) == (str(tmp_path / "runs"), tmp_path / "curves")
    path = toml(tmp_path, '[observe]\nmlflow = "sqlite:///runs.db"')
    assert load_config(path).observe.mlflow == "sqlite:///runs.db"


def test_two_parties_can_be_chosen_only_aloud():
    assert LocalPolicyOptions(min_cohort=2, allow_two_party=True).min_cohort == 2
    with pytest.raises(ValidationError):
        LocalPolicyOptions(min_cohort=2)


def test_plain_http_to_another_machine_is_known():
    assert load_config(overrides={**REQUIRED, "aggregator_url": "http://a.example"}).is_plain_http
    assert not load_config(overrides={**REQUIRED, "aggregator_url": "http://127.0.0.1:8750"}).is_plain_http
    assert not load_config(overrides=REQUIRED).is_plain_http
