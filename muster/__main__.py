"""`muster` and `python -m muster`."""

import sys


def main() -> None:
    """Run the command line. Ctrl-C while its modules are still being imported ends without a trace too."""
    try:
        from muster.cli import main as run  # noqa: PLC0415 - inside the block on purpose

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
