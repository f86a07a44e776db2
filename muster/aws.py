"""What botocore's errors say, in one place."""

from __future__ import annotations

from collections.abc import Mapping


def error_code(error: BaseException) -> str:
    """Return the code of an error that AWS answered with, such as "ThrottlingException".

    Return "" for any other error, such as a lost connection. Needs no import of botocore, which is slow.
    """
    response = getattr(error, "response", None)
    details = response.get("Error") if isinstance(response, Mapping) else None
    return str(details.get("Code", "")) if isinstance(details, Mapping) else ""
