"""The `polyhead` command. Without typer it says what to install; the commands are in app.py."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

__all__ = ["main"]


def main() -> None:
    """Entry point of the `polyhead` script. Exit code 1 and one readable line for whatever goes wrong."""
    if find_spec("typer") is None or find_spec("rich") is None:
        print("error: the command line needs two more packages\nhint: pip install 'polyhead[cli]'", file=sys.stderr)
        raise SystemExit(1)
    if sys.argv[1:2] != ["serve"]:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # without gRPC's own log lines before our error
    from polyhead.client.cli.app import build_app

    build_app(sys.argv[1:])()


if __name__ == "__main__":
    main()
