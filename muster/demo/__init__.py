"""The demo: a script of broadcasts to connected clients, and the checks of their receipts."""
