"""The AWS endpoint that the environment names, and the tests that it cannot serve."""

import os

from localstack_client.config import get_service_endpoint

EMBEDDED_ONLY = {
    "tests/e2e/test_deploy_page.py": "starts the embedded AWS itself",
    "tests/e2e/test_lifecycle.py": "starts the embedded AWS itself",
    "tests/faults/test_pipeline.py": "its functions post to a proxy on 127.0.0.1 of this machine",
    "tests/integration/test_embedded.py": "tests the embedded AWS itself",
    "tests/e2e/test_package.py": "starts the embedded AWS itself",
    "tests/integration/test_stall.py": "starts the embedded AWS itself",
}
"""Test files that need the embedded AWS, and why. They are skipped when the environment names an endpoint."""


def endpoint() -> str | None:
    """Return the endpoint that the environment names, as localstack-client resolves it; None without one."""
    if os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("LOCALSTACK_HOST"):
        return str(get_service_endpoint("apigatewayv2"))
    return None
