"""docs/deploy.md takes an empty account to a broadcast, and back: every command of it, in order."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from muster.local import emulator, repository
from muster.local.bundle import build_local, host_architecture
from muster.local.provider import provider_environment
from muster.local.terraform import find_binary
from muster.progress import Silent
from tests.support import ROOT
from tests.support.examples import copy_of

SECONDS = 420
"""Two applies and a destroy on a busy machine."""

# In the page's first terminal: start the second one, and go on when its client is connected.
IN_THE_SECOND_TERMINAL = """\
({block}) >heard.jsonl 2>listener.log & listener=$!
connected() {{ test "$(aws dynamodb scan --table-name muster-connections --query Count --output text)" = 1; }}
for _ in $(seq 120); do connected && break; sleep 0.5; done; connected || cat listener.log
"""


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of an AWS that has nothing in it."""
    folder = tmp_path_factory.mktemp("aws")
    port, log = emulator.free_port(), folder / "emulator.log"
    started: list[emulator.Process] = []
    try:
        process = emulator.start(port, log=log, folder=folder / "tmp", record=started.append)
        endpoint_url = f"http://{emulator.HOST}:{port}"
        emulator.wait_until_healthy(process, endpoint_url, log=log)
        yield endpoint_url
    finally:
        for process in started:
            emulator.stop(process)


def script() -> str:
    """The page's commands as one script, with what must differ locally."""
    page = (ROOT / "docs" / "deploy.md").read_text()
    assert "export AWS_REGION=eu-west-1\n" in page
    page = page.replace("export AWS_REGION=eu-west-1\n", f"export AWS_REGION={emulator.REGION}\n")
    page = re.sub(" --create-bucket-configuration .*", "", page)  # as the page says of this region
    blocks = re.findall(r"^```sh( listener)?\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert [kind for kind, _ in blocks].count(" listener") == 1
    lines = ["set -euxo pipefail"]
    for kind, block in blocks:
        lines.append(IN_THE_SECOND_TERMINAL.format(block=block.strip()) if kind else block)
        if "muster broadcast" in block:
            lines.append("wait $listener")
    return "\n".join(lines)


def programs(folder: Path) -> Path:
    """The programs that the page takes for granted."""
    commands = {
        "aws": f'exec {sys.executable} {ROOT / "tests" / "support" / "aws_cli.py"} "$@"',
        "muster": f'exec {sys.executable} -m muster "$@"',
        "make": 'test "$*" = build',
    }
    folder.mkdir()
    for name, command in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{command}\n")
        (folder / name).chmod(0o755)
    return folder


def test_every_command_of_the_page_works(account: str, tmp_path: Path) -> None:
    checkout = tmp_path / "muster"
    checkout.mkdir()
    copy_of("minimal", checkout)
    build_local(checkout / "build")
    activate = checkout / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    elsewhere = ("AWS_", "TF_", "MUSTER_OUTPUTS")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(elsewhere)}
    platform = find_binary().platform
    environment = {
        **inherited,
        **provider_environment(platform, inherited, repository.cache_dir(), Silent()),
        **emulator.local_environment(account),
        "PATH": f"{programs(tmp_path / 'bin')}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TF_CLI_ARGS_init": "-backend-config=use_path_style=true",
        "TF_CLI_ARGS_apply": "-auto-approve",
        "TF_CLI_ARGS_destroy": "-auto-approve",
        "TF_VAR_execute_api_url": f"{account}/_aws/execute-api/{{api_id}}",
        "TF_VAR_lambda_architecture": host_architecture(),
    }

    done = subprocess.run(
        ["bash", "-c", script()],
        cwd=checkout,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    heard = [json.loads(line) for line in (checkout / "heard.jsonl").read_text().splitlines()]
    assert [message["payload"] for message in heard] == [{"text": "Water at the east gate"}]
    assert re.search(r"delivered\D+1\b", done.stdout)
    assert '"type": "ack' in done.stdout
    # Upgrading to the same version finds nothing to do, and the end leaves only the state's bucket.
    assert "No changes." in done.stdout
    assert "Destroy complete!" in done.stdout
    session = boto3.Session("test", "test", region_name=emulator.REGION)
    assert session.client("dynamodb", endpoint_url=account).list_tables()["TableNames"] == []
    assert session.client("apigatewayv2", endpoint_url=account).get_apis()["Items"] == []
