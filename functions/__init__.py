"""One module per Lambda function; what they share is in `functions.shared`."""
