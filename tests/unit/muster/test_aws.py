"""The code of an error that AWS answered with."""

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from muster.aws import error_code


def test_an_answer_of_aws_has_its_code() -> None:
    error = ClientError({"Error": {"Code": "ThrottlingException", "Message": "slow down"}}, "StartExecution")
    assert error_code(error) == "ThrottlingException"


@pytest.mark.parametrize(
    "error",
    [
        ClientError({}, "StartExecution"),
        EndpointConnectionError(endpoint_url="https://states.example"),
        KeyError("x"),
    ],
)
def test_any_other_error_has_none(error: Exception) -> None:
    assert error_code(error) == ""
