"""`make annotate`: a server on the embedded model, the frontend, an admin's code and an invite link, until Ctrl+C.

What is collected stays in a folder, and the next start goes on with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from polyhead.client.annotate.commands import DEFAULT_PORT, default_project, initialise
from polyhead.client.local import local_server

FOLDER = Path("annotate-trial")


def main() -> None:
    """Needs the extras `server` and `annotate`."""
    FOLDER.mkdir(exist_ok=True)
    database = FOLDER / "annotate.db"
    print("starting a server on the embedded model: half a minute the first time", flush=True)
    with local_server(["--store", str(FOLDER / "store")]) as server:
        if not database.exists():
            code, link = initialise(database, default_project(), f"http://127.0.0.1:{DEFAULT_PORT}")
            print(f"admin's code   {code}   (shown once)\ninvite link    {link}", flush=True)
        command = [sys.executable, "-m", "polyhead.client.cli.main", "annotate", "serve", "--db", str(database), "--server", server.address]
        try:
            subprocess.run(command, env=os.environ, check=False)
        except KeyboardInterrupt:
            print(f"\nexport with: polyhead annotate export rows.jsonl --db {database}", flush=True)


if __name__ == "__main__":
    main()
