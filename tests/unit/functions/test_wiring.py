import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from functions import accept, connect, default, deliver, disconnect, offline
from functions.shared import clients
from functions.shared.errors import SettingsError
from tests.support.functions import STATE_MACHINE, TOPIC

ROOT = Path(__file__).parents[3]

JWT = {
    "JWT_ALGORITHMS": "HS256",
    "JWT_ISSUER": "muster",
    "JWT_AUDIENCE": "muster",
    "JWT_SECRET_ARN": "arn:secret",
}
TABLES = {"CONNECTIONS_TABLE": "connections", "USERS_TABLE": "users", "MESSAGES_TABLE": "messages"}
ENDPOINT = {"CONNECTIONS_ENDPOINT": "https://abc.execute-api.eu-west-1.amazonaws.com/live"}
ROLES = {"ROLES": json.dumps({"admin": {"actions": ["alert"]}})}
RETENTION = {"MESSAGE_RETENTION_SECONDS": "604800"}
CONNECT = {"CONNECTION_TTL_SECONDS": "86400", "AUDIENCE_SHARDS": "4"}

DEFAULT = JWT | TABLES | ENDPOINT | ROLES | CONNECT | {"BROADCAST_STATE_MACHINE_ARN": STATE_MACHINE}

FUNCTIONS: dict[str, tuple[Any, dict[str, str]]] = {
    "connect": (connect.dependencies, JWT | TABLES | ROLES | CONNECT),
    "disconnect": (disconnect.connections, TABLES),
    "default": (default.dependencies, DEFAULT),
    "default, for a renewal": (default.verifier, DEFAULT),
    "accept": (accept.config, ROLES | RETENTION | CONNECT),
    "deliver": (deliver.gateway, ENDPOINT | {"POST_CONCURRENCY": "64"}),
    "offline": (offline.dependencies, TABLES | RETENTION | {"OFFLINE_TOPIC_ARN": TOPIC}),
}


IMPORTS = "from functions import accept, connect, default, deliver, disconnect, offline"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set a region, and clear what functions keep between events before and after a test."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    kept: list[Any] = [clients.client, clients.session, *(built for built, _ in FUNCTIONS.values())]
    for cached in kept:
        cached.cache_clear()
    yield
    for cached in kept:
        cached.cache_clear()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_builds_its_dependencies_once(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, environment = FUNCTIONS[function]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert build() is build()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_reports_what_its_environment_misses(function: str) -> None:
    build, _ = FUNCTIONS[function]
    with pytest.raises(SettingsError, match="is not set"):
        build()


def test_importing_the_functions_needs_no_environment_and_makes_no_client() -> None:
    script = f"""
import functions.shared.telemetry  # outside of Lambda, the X-Ray SDK makes a client of its own
import botocore.session
botocore.session.Session = None
{IMPORTS}
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env={}, check=True, timeout=30)


def test_modules_for_renewals_are_imported_at_the_first_renewal() -> None:
    script = "import sys, functions.default; assert not {'jwt', 'cryptography'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env={}, check=True, timeout=30)


IN_LAMBDA = {
    "AWS_LAMBDA_FUNCTION_NAME": "muster",
    "LAMBDA_TASK_ROOT": str(ROOT),
    "AWS_DEFAULT_REGION": "eu-west-1",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
}


def test_lambda_makes_the_clients_while_it_initialises_a_function() -> None:
    built = "connect.dependencies, default.dependencies, deliver.gateway, disconnect.connections"
    script = f"""
{IMPORTS}
from functions.shared import clients
for build in ({built}, offline.dependencies):
    assert build.cache_info().currsize == 1, build
made = clients.client.cache_info().currsize
default.dependencies(), connect.dependencies(), offline.dependencies()
assert clients.client.cache_info().currsize == made > 0
"""
    environment = {name: value for _, needs in FUNCTIONS.values() for name, value in needs.items()}
    command = [sys.executable, "-c", script]
    subprocess.run(command, cwd=ROOT, env=environment | IN_LAMBDA, check=True, timeout=30)


def test_an_event_reports_the_error_of_a_failed_initialisation() -> None:
    script = f"""
{IMPORTS}
from functions.shared.errors import SettingsError
try:
    disconnect.connections()
except SettingsError as error:
    assert "CONNECTIONS_TABLE is not set" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=IN_LAMBDA, check=True, timeout=30)


def test_accept_imports_no_aws_client() -> None:
    script = "import sys, functions.accept; assert not {'botocore.session', 'boto3'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=IN_LAMBDA, check=True, timeout=30)


def test_the_posting_core_imports_neither_aws_nor_telemetry() -> None:
    script = """
import sys
before = set(sys.modules)
import functions.shared.posting.gateway
assert not {"botocore", "boto3", "aws_lambda_powertools", "aws_xray_sdk"} & (sys.modules.keys() - before)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=30)


def test_importing_the_functions_leaves_nothing_that_a_snapshot_cannot_restore() -> None:
    """No thread, which would not exist after a restore, and no connection, which would be closed."""
    script = f"""
import gc, socket, threading
{IMPORTS}
assert deliver.gateway.cache_info().currsize == 1
assert threading.enumerate() == [threading.main_thread()]
assert not [s for s in gc.get_objects() if isinstance(s, socket.socket) and s.type == socket.SOCK_STREAM]
"""
    environment = {name: value for _, needs in FUNCTIONS.values() for name, value in needs.items()}
    command = [sys.executable, "-c", script]
    subprocess.run(command, cwd=ROOT, env=environment | IN_LAMBDA, check=True, timeout=30)


def test_environments_restored_from_one_snapshot_wait_for_different_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hooks: list[Callable[[], None]] = []
    runtime = ModuleType("snapshot_restore_py")
    vars(runtime)["register_after_restore"] = hooks.append
    monkeypatch.setitem(sys.modules, "snapshot_restore_py", runtime)
    clients.client("dynamodb")
    snapshot = random.getstate()
    pauses = []
    for _ in range(2):
        random.setstate(snapshot)
        for restore in hooks:
            restore()
        pauses.append(random.random())
    random.setstate(snapshot)
    assert len(set(pauses)) == 2


def test_clients_are_shared_and_time_out_before_a_function_does() -> None:
    made = clients.client("dynamodb")
    assert clients.client("dynamodb") is made
    config = made.meta.config
    attempts = config.retries["total_max_attempts"]
    assert (config.connect_timeout + config.read_timeout) * attempts < 10  # the shortest function's time
    assert clients.client("dynamodb", "http://127.0.0.1:1").meta.endpoint_url == "http://127.0.0.1:1"
