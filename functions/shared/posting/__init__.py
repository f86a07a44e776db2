"""The posting engine: sends one message to many WebSocket connections. `deliver` and bench/ use it.

Import from `gateway`. The package imports neither AWS libraries nor telemetry.
"""
