"""One module per Lambda function; what they share is in `functions.shared`."""

__version__ = "0.2.0"
