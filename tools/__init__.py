"""Programs that write parts of the docs."""
