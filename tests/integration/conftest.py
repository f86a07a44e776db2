"""Fixtures of the integration tests: what they put into the stack, and take out again."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from muster import Stack
from muster.local.seed import User
from tests.support.deployment import Deployment
from tests.support.variants import Variants

Connect = Callable[..., str]


@pytest.fixture
def connect(deployment: Deployment) -> Iterator[Connect]:
    """`Deployment.put_connection`, whose rows are gone after the test."""
    made: list[str] = []

    def put(user: User, **options: Any) -> str:
        made.append(deployment.put_connection(user, **options))
        return made[-1]

    yield put
    deployment.forget_connections(made)


@pytest.fixture(scope="session")
def variants(stack: Stack, deployment: Deployment) -> Iterator[Variants]:
    """Copies of what is deployed, changed in one respect."""
    variants = Variants(deployment, stack.state_dir / "bundle" / "functions.zip")
    yield variants
    variants.remove()
