"""Muster: real-time broadcasts to WebSocket clients, on AWS and on one machine.

The library in four names: `Broadcaster` starts broadcasts from a service, `Client` is a WebSocket client that
reconnects and resumes, `Outputs` says where a deployment is, and `Stack` runs one on this machine.
"""

from muster.broadcaster import Broadcaster
from muster.client import Client
from muster.errors import MusterError
from muster.outputs import Outputs
from muster.stack import Stack

__all__ = ["Broadcaster", "Client", "MusterError", "Outputs", "Stack"]
