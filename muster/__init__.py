"""Muster: real-time broadcasts to WebSocket clients, on AWS and on one machine.

`Broadcaster` starts broadcasts from a service, `Client` is a WebSocket client that reconnects and resumes,
`Outputs` says where a deployment is, and `Stack` runs one on this machine. `muster/errors.py` draws the tree
of exceptions, and `muster.types` describes the JSON objects that travel. docs/python.md describes every name.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muster.broadcaster import (
        Broadcaster,
        BroadcastError,
        BroadcastFailed,
        BroadcastTimeout,
        Execution,
        IdempotencyConflict,
        InvalidBroadcast,
        InvalidName,
        InvalidRequest,
        Partition,
        Receipt,
        UnknownBroadcast,
    )
    from muster.client import (
        Client,
        ClientClosed,
        ClientError,
        HandshakeRefused,
        Refused,
        ReplyTimeout,
        TooLarge,
        Unreachable,
    )
    from muster.errors import (
        BundleError,
        DemoFailed,
        MusterError,
        OutputsError,
        StackError,
        TerraformError,
        TerraformStalled,
    )
    from muster.faults import Fault
    from muster.local.stack import Stack
    from muster.outputs import Outputs
    from muster.testing import NotReceived
    from muster.tokens import TokenError, TokenIssuer, issue_token
    from muster.verify import UnsafeTarget

_MODULES = {
    "BroadcastError": "broadcaster",
    "BroadcastFailed": "broadcaster",
    "BroadcastTimeout": "broadcaster",
    "Broadcaster": "broadcaster",
    "BundleError": "errors",
    "Client": "client",
    "ClientClosed": "client",
    "ClientError": "client",
    "DemoFailed": "errors",
    "Execution": "broadcaster",
    "Fault": "faults",
    "HandshakeRefused": "client",
    "IdempotencyConflict": "broadcaster",
    "InvalidBroadcast": "broadcaster",
    "InvalidName": "broadcaster",
    "InvalidRequest": "broadcaster",
    "MusterError": "errors",
    "NotReceived": "testing",
    "Outputs": "outputs",
    "OutputsError": "errors",
    "Partition": "broadcaster",
    "Receipt": "broadcaster",
    "Refused": "client",
    "ReplyTimeout": "client",
    "Stack": "local.stack",
    "StackError": "errors",
    "TerraformError": "errors",
    "TerraformStalled": "errors",
    "TokenError": "tokens",
    "TokenIssuer": "tokens",
    "TooLarge": "client",
    "UnknownBroadcast": "broadcaster",
    "Unreachable": "client",
    "UnsafeTarget": "verify",
    "issue_token": "tokens",
}
"""The module of each name. A name is imported when it is first used, so that the command line handles Ctrl-C
before slow imports."""

__all__ = [
    "BroadcastError",
    "BroadcastFailed",
    "BroadcastTimeout",
    "Broadcaster",
    "BundleError",
    "Client",
    "ClientClosed",
    "ClientError",
    "DemoFailed",
    "Execution",
    "Fault",
    "HandshakeRefused",
    "IdempotencyConflict",
    "InvalidBroadcast",
    "InvalidName",
    "InvalidRequest",
    "MusterError",
    "NotReceived",
    "Outputs",
    "OutputsError",
    "Partition",
    "Receipt",
    "Refused",
    "ReplyTimeout",
    "Stack",
    "StackError",
    "TerraformError",
    "TerraformStalled",
    "TokenError",
    "TokenIssuer",
    "TooLarge",
    "UnknownBroadcast",
    "Unreachable",
    "UnsafeTarget",
    "issue_token",
]


def __getattr__(name: str) -> Any:
    """Import a name from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
