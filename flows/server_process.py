"""The process of the embedded Prefect server: ``python -m flows.server_process``, started by flows/server.py.

It prints the port it listens on and ends when its standard input does. The other end of that pipe belongs to the
command's process alone and is closed with it, however it dies: a ``kill -9`` leaves no server behind.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time

import uvicorn

GRACE_S = 3


def main() -> None:
    """Serve Prefect's API on a free port of this machine until the owner is gone."""
    # Listening comes first: a client that is early waits in the queue instead of being refused.
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=_end_with_owner, name="owner", daemon=True).start()
    config = uvicorn.Config(_app, factory=True, log_level="error", lifespan="on", timeout_graceful_shutdown=GRACE_S)
    uvicorn.Server(config).run(sockets=[listener])


def _app() -> object:
    from prefect.server.api.server import create_app

    return create_app(ephemeral=True, final=True)


def _end_with_owner() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(2 * GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    main()
