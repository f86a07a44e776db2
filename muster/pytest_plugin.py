"""A pytest plugin, which pytest loads automatically: fixtures for the local stack, users and clients.

    muster_stack        the local stack, started when the first test asks for it        (session)
    muster_outputs      its outputs: `Broadcaster.from_outputs(muster_outputs)`         (session)
    muster_variables    Terraform variables of the stack; override it in conftest.py    (session)
    muster_environment  points the AWS SDKs of this process to the stack
    muster_user         muster_user("first_responder") is a new user, deleted after the test
    muster_token        muster_token(user) is a token, for your own client              (session)
    muster_client       muster_client(user) is a connected client, closed after the test
    muster_offline      receives what is published to the offline topic during the test

All work in synchronous tests, without an asyncio plugin. docs/testing.md has an example.

With pytest-xdist, all workers share one stack. Users, clients and `muster_offline` belong to one test, but a
message to a role or to all reaches the users of other tests too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

# Slow imports wait until a test needs them, because pytest loads this plugin in every session.
if TYPE_CHECKING:
    from datetime import timedelta

    from muster.local.seed import User
    from muster.local.stack import Stack
    from muster.outputs import Outputs
    from muster.testing import OfflineQueue, SessionStack, UserClient
    from muster.tokens import TokenIssuer

_FOLDER = pytest.StashKey[Path]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --muster-keep."""
    parser.getgroup("muster").addoption(
        "--muster-keep",
        action="store_true",
        help="Use the stack of `muster up`, start it if necessary, and keep it running.",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give a worker of pytest-xdist the session's folder."""
    node.workerinput["muster_folder"] = str(_folder(node.config))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print that a kept stack stays up, and how to stop it."""
    if _folder(config).exists() and (session := _session(config)).kept:
        terminalreporter.write_line(f"The local stack stays up: muster down --state-dir {session.state_dir}")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the stack, if a test of any worker used it."""
    if hasattr(config, "workerinput") or not _folder(config).exists():
        return
    from muster.errors import MusterError  # noqa: PLC0415
    from muster.testing import describe  # noqa: PLC0415

    try:
        _session(config).end()
    except (MusterError, OSError) as error:
        print(f"The local stack did not stop: {describe(error)}", file=sys.stderr)


@pytest.fixture(scope="session")
def muster_variables() -> dict[str, Any]:
    """Terraform variables for the stack, such as your own `roles`: override it in conftest.py."""
    return {}


@pytest.fixture(scope="session")
def muster_stack(pytestconfig: pytest.Config, muster_variables: dict[str, Any]) -> Stack:
    """The local stack. It takes about a minute to start, and stops at the end of the session."""
    from muster.errors import MusterError  # noqa: PLC0415
    from muster.testing import describe  # noqa: PLC0415

    try:
        return _session(pytestconfig).start(muster_variables)
    except (MusterError, OSError) as error:
        problem = describe(error)
    # Outside of the `except` block, where pytest would print the original error too.
    pytest.fail(f"The local stack cannot start. {problem}", pytrace=False)


@pytest.fixture(scope="session")
def muster_outputs(muster_stack: Stack) -> Outputs:
    """The stack's addresses, ARNs and table names, and its boto3 clients."""
    outputs = muster_stack.status().outputs
    if outputs is None:
        pytest.fail("The local stack has stopped. Fix: run the tests again.", pytrace=False)
    return outputs


@pytest.fixture
def muster_environment(muster_outputs: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the AWS SDKs of this process and of its child processes to the stack."""
    for name, value in muster_outputs.environment().items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


@pytest.fixture
def muster_user(muster_outputs: Outputs) -> Iterator[Callable[..., User]]:
    """Make users: `muster_user(role="resident", shelter_id=None, *, active=True)`."""
    from muster.testing import Users  # noqa: PLC0415

    with closing(Users(muster_outputs)) as users:
        yield users.add


@pytest.fixture(scope="session")
def _muster_issuer(muster_outputs: Outputs) -> TokenIssuer:
    """The issuer with the deployment's secret, which is read once."""
    from muster.tokens import TokenIssuer  # noqa: PLC0415

    return TokenIssuer.from_outputs(muster_outputs)


@pytest.fixture(scope="session")
def muster_token(_muster_issuer: TokenIssuer) -> Callable[..., str]:
    """Make tokens for your own client: `muster_token(user, ttl)`. By default they are valid for an hour."""

    def issue(user: User | str, *ttl: timedelta) -> str:
        return _muster_issuer.issue(_user_id(user), *ttl)

    return issue


@pytest.fixture
def muster_client(
    muster_outputs: Outputs,
    _muster_issuer: TokenIssuer,
    muster_user: object,  # so that clients are closed before their users are deleted
) -> Iterator[Callable[[User | str], UserClient]]:
    """Connect clients: `muster_client(user)`, or a seeded user with `muster_client("responder-finn")`."""
    from muster.client import HandshakeRefused  # noqa: PLC0415
    from muster.testing import UserClient, refusal_reason  # noqa: PLC0415

    with ExitStack() as clients:

        def connect(user: User | str) -> UserClient:
            __tracebackhide__ = True
            began = time.time()
            try:
                client = UserClient(muster_outputs.websocket_url, _muster_issuer, _user_id(user))
            except HandshakeRefused as error:
                if reason := refusal_reason(muster_outputs, _user_id(user), began):
                    error.add_note(f"The log of connect: {reason}")
                refused = error
            else:
                return clients.enter_context(closing(client))
            raise refused.with_traceback(None)  # without the frames of the client

        yield connect


@pytest.fixture
def muster_offline(muster_outputs: Outputs) -> Iterator[OfflineQueue]:
    """Receives what SNS publishes about users who are not reached, from the start of the test."""
    from muster.testing import OfflineQueue  # noqa: PLC0415

    with closing(OfflineQueue(muster_outputs)) as queue:
        yield queue


def _user_id(user: User | str) -> str:
    return user if isinstance(user, str) else user.user_id


def _folder(config: pytest.Config) -> Path:
    """Return the folder of the session. The first test that needs the stack creates it."""
    if _FOLDER not in config.stash:
        worker: dict[str, str] = getattr(config, "workerinput", {})  # of pytest-xdist
        name = worker.get("muster_folder") or f"muster-pytest-{uuid4().hex}"
        config.stash[_FOLDER] = Path(gettempdir()).resolve() / name
    return config.stash[_FOLDER]


def _session(config: pytest.Config) -> SessionStack:
    from muster.local import repository  # noqa: PLC0415
    from muster.testing import SessionStack  # noqa: PLC0415

    folder = _folder(config)
    kept = config.getoption("muster_keep")
    return SessionStack(folder, repository.default_state_dir().absolute() if kept else folder / "stack")
