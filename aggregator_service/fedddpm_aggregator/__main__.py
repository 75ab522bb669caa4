"""The command ``fedddpm-aggregator``: health checks at once, everything else by the command line's own module."""

from __future__ import annotations

import sys

from fedddpm_aggregator.cli import healthcheck


def main() -> None:
    """Entry point."""
    if sys.argv[1:2] == [healthcheck.NAME]:
        raise SystemExit(healthcheck.main(sys.argv[2:]))
    from fedddpm_aggregator.cli import app  # takes a second that a health check should not

    app.main()


if __name__ == "__main__":
    main()
