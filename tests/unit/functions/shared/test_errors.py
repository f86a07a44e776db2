"""Error codes of AWS."""

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError

from functions.shared.errors import aws_code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ClientError({"Error": {"Code": "ThrottlingException"}}, "Query"), "ThrottlingException"),
        (ClientError({"Error": {}}, "Query"), ""),
        (ClientError({}, "Query"), ""),
        (ReadTimeoutError(endpoint_url="https://dynamodb"), ""),
        (EndpointConnectionError(endpoint_url="https://dynamodb"), ""),
    ],
)
def test_the_code_is_empty_without_a_code_from_aws(error: Exception, code: str) -> None:
    assert aws_code(error) == code
