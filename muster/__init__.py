"""Muster: real-time broadcasts to WebSocket clients, on AWS and on one machine.

The library in four names: `Broadcaster` starts broadcasts from a service, `Client` is a WebSocket client that
reconnects and resumes, `Outputs` says where a deployment is, and `Stack` runs one on this machine.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muster.broadcaster import Broadcaster
    from muster.client import Client
    from muster.errors import MusterError
    from muster.local.stack import Stack
    from muster.outputs import Outputs

__all__ = ["Broadcaster", "Client", "MusterError", "Outputs", "Stack"]

_MODULES = {
    "Broadcaster": "broadcaster",
    "Client": "client",
    "MusterError": "errors",
    "Outputs": "outputs",
    "Stack": "local.stack",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, so that the command line handles Ctrl-C before slow imports."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
