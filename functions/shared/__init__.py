"""What the functions share. Nothing here imports from a handler."""

VERSION = "0.2.0"
USER_AGENT = f"muster/{VERSION}"
"""What the functions call themselves to HTTP servers that see a request made without an AWS SDK."""
