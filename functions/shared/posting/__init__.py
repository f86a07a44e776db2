"""Posts a message to many connections at once. Only `deliver` and bench/ use this package."""
