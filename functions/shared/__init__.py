"""What the functions share. Nothing here imports from a handler."""
