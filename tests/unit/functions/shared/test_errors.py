"""What is read out of AWS's errors."""

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
def test_a_code_is_empty_where_aws_did_not_give_one(error: Exception, code: str) -> None:
    assert aws_code(error) == code
