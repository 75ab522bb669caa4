"""A new setting is written down once, in ``config``: file, command line and ``Client`` have it then."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, get_type_hints

import pytest
from pydantic import BaseModel

import fedddpm
from fedddpm.cli.setting_options import setting_options
from fedddpm.client import Client, ClientSettings
from fedddpm.config import ClientConfig, Option
from fedddpm.errors import ConfigError

IN_A_TABLE = '    made_up: Annotated[int, Field(ge=1), Option("how much is made up")] = 7\n'
IN_NONE = '    made_up_as_well: Annotated[Path | None, Option("where that is kept")] = None\n'
PROGRAM = """
import sys
from fedddpm.cli.app import main
from fedddpm.client import Client
from fedddpm.config import LearningOptions

def told(client, config, *_):
    print(config.learning.made_up, config.made_up_as_well)
    sys.exit()

Client._set_up = told
if sys.argv[1] == "participate":
    main()
needed = dict(aggregator_url="http://127.0.0.1:9", identity="a.key", federation_root="ab" * 32, data="d", state_dir="s")
Client(**needed, learning=LearningOptions(made_up=int(sys.argv[2])), made_up_as_well=sys.argv[3])
"""
SITE = f"""
aggregator_url = "http://127.0.0.1:9"
identity = "a.key"
federation_root = "{"ab" * 32}"
data = "celeba"
state_dir = "state"
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SDK with two more settings in its ``config``, and no other change."""
    folder = tmp_path_factory.mktemp("sdk")
    shutil.copytree(Path(fedddpm.__file__).parent, folder / "fedddpm", ignore=shutil.ignore_patterns("__pycache__"))
    config = folder / "fedddpm" / "config.py"
    text = config.read_text()
    for line, before in ((IN_A_TABLE, "    label_dropout:"), (IN_NONE, "    policy: LocalPolicyOptions")):
        assert text.count(before) == 1
        text = text.replace(before, line + before)
    config.write_text(text)
    return folder


def run(package: Path, *arguments: str) -> str:
    paths = [str(package), *sys.path]
    program = f"import sys\nsys.path[:0] = {paths!r}\n{PROGRAM}"
    command, wide = [sys.executable, "-c", program, *arguments], {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, cwd=package, env=wide, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_made_up_setting_is_everywhere(package: Path) -> None:
    shown = " ".join(run(package, "participate", "--help").split())
    for words in ("--made-up ", "learning: how much is made up", "--made-up-as-well ", "where that is kept"):
        assert words in shown
    (package / "site.toml").write_text(SITE)
    taken = ("participate", "--config", "site.toml")
    assert run(package, *taken) == "7 None\n"
    assert run(package, *taken, "--made-up", "3", "--made-up-as-well", "here") == "3 here\n"
    (package / "site.toml").write_text(f'{SITE}made_up_as_well = "there"\n[learning]\nmade_up = 5\n')
    assert run(package, *taken) == "5 there\n"
    assert run(package, "client", "9", "elsewhere") == "9 elsewhere\n"


def test_type_checkers_know_every_setting_that_a_client_takes() -> None:
    needed = {name for name, field in ClientConfig.model_fields.items() if field.is_required()}
    parameters = signature(Client).parameters.values()
    assert {
        one.name for one in parameters if one.default is Parameter.empty and one.kind is Parameter.KEYWORD_ONLY
    } == needed
    of_the_command = {"log_format"}
    assert set(get_type_hints(ClientSettings)) == set(ClientConfig.model_fields) - needed - of_the_command


def test_a_misspelt_setting_is_named() -> None:
    with pytest.raises(ConfigError, match=r"holdoout.*unknown"):
        Client(
            aggregator_url="http://127.0.0.1:9",
            identity="a.key",
            federation_root=bytes(32),
            data="celeba",
            state_dir="state",
            holdoout=0.2,  # type: ignore[call-arg]
        )


def test_what_cannot_be_an_option_is_said() -> None:
    class Model(BaseModel):
        either: Annotated[int | Path, Option("one or the other")] = 1

    with pytest.raises(TypeError, match="say its kind"):
        list(setting_options(Model))
