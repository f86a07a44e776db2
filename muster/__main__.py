"""`muster` and `python -m muster`."""

import sys

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended: 128 and the number of SIGINT."""


def main() -> None:
    """Run the command line. An interrupt exits with 130 and without a trace, also during the imports."""
    try:
        from muster.cli import main as run  # noqa: PLC0415 - the imports take long enough to be interrupted

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
