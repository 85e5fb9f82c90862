"""A process that lives no longer than its owner: ``python -m flows.service.guard COMMAND...``.

It runs the command and ends it, with all that the command started, when its standard input ends. The other end of that
pipe belongs to the owner alone and closes with it, however it dies: a ``kill -9`` leaves nothing behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import psutil  # type: ignore[import-untyped]

GRACE_S = 10.0


def main() -> None:
    """Run the command of ``sys.argv``, and exit with its code."""
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    threading.Thread(target=_wait_for_owner, name="owner", daemon=True).start()
    try:
        code = child.wait()
    finally:
        _end(child)
    sys.exit(code)


def _wait_for_owner() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the command first, so that it can say its last words, then what it leaves behind."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        family = psutil.Process(child.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_S)
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(family, timeout=GRACE_S)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    child.kill()
    child.wait()


if __name__ == "__main__":
    main()
