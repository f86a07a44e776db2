"""The Lambda functions, one module each. Shared code is in `functions.shared`."""

__version__ = "0.2.0"
