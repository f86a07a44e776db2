"""Where promises are written down, and where to look when one is broken."""

PROTOCOL = "Muster: docs/protocol.md"
DELIVERY = "Muster: docs/delivery.md"
OPERATIONS = "Muster: docs/operations.md"

CONNECT_LOG = "Read the log of the connect function."
DEFAULT_LOG = "Read the log of the default function."
DELIVER_LOG = "Read the logs of the deliver function and of the execution."
OFFLINE_LOG = "Read the log of the offline function."
