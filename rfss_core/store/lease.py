"""Lease of a workspace: one run at a time, and none that a crash leaves behind for ever.

Leases are numbered files ``lease/<number>.json``; the highest one counts. To take the workspace a run creates the next
number, which only one of several can do (:meth:`rfss_core.store.files.Files.create`), and then writes its own file
alone, a rising heartbeat in it. An owner that finds a higher number than its own has lost the workspace and stops: the
number is a fencing token (M. Kleppmann, "How to do distributed locking", 2016).

Nobody compares clocks. Whoever finds a lease watches it, on the monotonic clock of its own machine: a heartbeat that
moves belongs to a living owner, one that stands still for the seconds that the lease itself states, to a dead one. On
the owner's own machine the process table answers at once.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rfss_core.errors import StoreError, WorkspaceBusyError, WorkspaceLostError
from rfss_core.store.files import Files

FOLDER = "lease"
BEATS = 6
"""Heartbeats in the time after which a lease is stale."""
_POLLS = 4
"""Looks at a heartbeat in the time between two of them."""
log = logging.getLogger("rfss")

Ended = Literal["finished", "failed", "stopped"]
Life = Literal["alive", "dead", "ended"]


@dataclass(frozen=True)
class LeaseFile:
    """What a lease says about its owner."""

    owner: str
    """A name of this one run."""
    host: str
    machine: str
    """Boot and process table that ``pid`` belongs to; empty where the system does not say."""
    pid: int
    started: float
    """When the process started, by its own machine: tells a process from a later one of the same number."""
    command: str
    since: str
    """When the lease was taken, by the owner's clock: to be read by people."""
    stale_s: float
    """A heartbeat that stands still for so long belongs to a dead owner."""
    beat: int = 0
    ended: Ended | None = None
    """How the run ended; None while it goes on."""

    def __str__(self) -> str:
        return f"'{self.command}' on {self.host}, process {self.pid}, since {self.since}"


class Lease:
    """A workspace, taken; :func:`take` makes one.

    Args:
        files: the workspace's files.
        number: number of the lease.
        content: its first content, as stored.
    """

    def __init__(self, files: Files, number: int, content: LeaseFile) -> None:
        self._files = files
        self._number = number
        self._content = content
        self._lost: LeaseFile | None = None
        self._renewed = _now()
        self._renewing = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="rfss-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Make sure that the workspace is still this run's; asks the storage only after a long silence.

        Raises:
            WorkspaceLostError: another run took it.
            StoreError: the storage does not answer.
        """
        if self._lost is None and _now() - self._renewed > self._content.stale_s / 2:
            # This process slept: it looks before it writes.
            self._renew()
        if self._lost is not None:
            raise WorkspaceLostError(
                f"workspace '{self._files.url}' was taken over by {self._lost}, because this run gave no sign of life "
                f"for {self._content.stale_s:g} s; this run stops. What it finished is kept: see `rfss status`"
            )

    def end(self, ended: Ended) -> None:
        """Give the workspace back and say how the run ended."""
        self._stop.set()
        self._thread.join()
        _ours.discard(self._content.owner)
        if self._lost is None:
            try:
                _write(self._files, self._number, replace(self._content, ended=ended))
            except StoreError as error:
                # What ended the run, a full disk perhaps, must not hide behind its own consequence.
                log.warning("the lease of the workspace could not be given back: %s", error)

    def _beat(self) -> None:
        while not self._stop.wait(self._content.stale_s / BEATS):
            try:
                self._renew()
            except StoreError as error:
                log.warning("the lease of the workspace could not be renewed: %s", error)
            if self._lost is not None:
                log.error("the workspace was taken over by %s", self._lost)
                return

    def _renew(self) -> None:
        with self._renewing:
            if self._lost is not None:
                # The thread that waited here first saw it, and has cleared the number away.
                return
            self._content = replace(self._content, beat=self._content.beat + 1)
            _write(self._files, self._number, self._content)
            # After writing: who took over while this run slept has cleared its number away, and has a higher one.
            latest = read_lease(self._files)
            if latest is not None and latest[0] > self._number:
                with suppress(StoreError):
                    self._files.remove(_path(self._number))
                self._lost = latest[1]
            self._renewed = _now()


_ours: set[str] = set()
"""Owners in this process: a lease of this process by any other name was left behind."""


@contextmanager
def take(
    files: Files, stale_s: float, command: str = "", *, waiting: Callable[[str], None] | None = None
) -> Iterator[Lease]:
    """Hold the workspace for as long as the context lasts.

    Args:
        files: the workspace's files.
        stale_s: seconds without a sign of life after which others may take the workspace; renewed six times as often.
        command: what the owner is, for people. Default: the process's own command line.
        waiting: is told in a sentence that a dead looking lease is being watched, which takes up to its ``stale_s``.

    Yields:
        The lease; ask it :meth:`Lease.check` before what must not happen twice.

    Raises:
        WorkspaceBusyError: another run holds the workspace.
        StoreError: the storage does not answer.
    """
    content = _content(stale_s, command)
    _ours.add(content.owner)
    try:
        lease = _taken(files, content, waiting)
    except BaseException:
        _ours.discard(content.owner)
        raise
    try:
        yield lease
    except BaseException as error:
        # Ctrl-C, and what an orchestrator raises on SIGTERM, are no errors: they derive from BaseException alone.
        lease.end("failed" if isinstance(error, Exception) else "stopped")
        raise
    lease.end("finished")


def read_lease(files: Files) -> tuple[int, LeaseFile] | None:
    """Return the number and content of the lease that counts; None where there never was one."""
    numbers, seen = _numbers(files), None
    while numbers != seen:
        for number in reversed(numbers):
            data = files.read_many([_path(number)])
            if not data:
                continue
            try:
                return number, LeaseFile(**json.loads(data[_path(number)]))
            except (ValueError, TypeError):
                # Torn or foreign: its number counts, its owner says nothing.
                return number, _NOBODY
        # Cleared away between the two looks, by who has a higher one.
        numbers, seen = _numbers(files), numbers
    return None


def life(files: Files, *, waiting: Callable[[str], None] | None = None) -> tuple[LeaseFile, Life] | None:
    """Return whose lease it is and whether its owner lives; None where there never was one.

    Watches the heartbeat for up to ``stale_s`` seconds where the owner's process table cannot be asked.
    """
    found = read_lease(files)
    if found is None:
        return None
    return found[1], _life(files, *found, waiting)


def refuse_busy(files: Files) -> None:
    """Refuse at once a workspace that a run on this machine holds; others are left to :func:`take`.

    Raises:
        WorkspaceBusyError: another run holds the workspace.
    """
    found = read_lease(files)
    if found is not None and found[1].machine == _machine() != "" and _life(files, *found, None) == "alive":
        raise _busy(files, found[1])


def _busy(files: Files, owner: LeaseFile) -> WorkspaceBusyError:
    return WorkspaceBusyError(
        f"workspace '{files.url}' is in use by {owner}; wait until it ends or stop it, see `rfss status {files.url}`, "
        "or name another --workspace"
    )


def _taken(files: Files, content: LeaseFile, waiting: Callable[[str], None] | None) -> Lease:
    while True:
        found = read_lease(files)
        number = 1
        if found is not None:
            number = found[0] + 1
            if _life(files, *found, waiting) == "alive":
                raise _busy(files, found[1])
        if files.create(_path(number), _bytes(content)):
            for old in _numbers(files):
                if old < number:
                    files.remove(_path(old))
            if (latest := read_lease(files)) is not None and latest[1].owner == content.owner:
                return Lease(files, number, content)
            # The number had been free again: two were quicker, and the second cleared the first's away.
            files.remove(_path(number))
        # Another run was quicker: look at its lease.


def _life(files: Files, number: int, found: LeaseFile, waiting: Callable[[str], None] | None) -> Life:
    if found.ended is not None:
        return "ended"
    if found.machine and found.machine == _machine():
        if found.pid == os.getpid():
            return "alive" if found.owner in _ours else "dead"
        return "alive" if _started(found.pid) == found.started else "dead"
    step = found.stale_s / BEATS / _POLLS
    still, told = 0.0, False
    while still < found.stale_s:
        looked = _now()
        time.sleep(step)
        latest = read_lease(files)
        # A storage that was away, or a sleep of this machine, says nothing about the owner.
        still += min(_now() - looked, 2 * step)
        if latest is None or latest[0] != number:
            # Cleared away, or taken by another run: that one lives.
            return "alive" if latest is not None else "ended"
        if latest[1].ended is not None:
            return "ended"
        if latest[1].beat != found.beat:
            return "alive"
        if waiting is not None and not told and still > 2 * _POLLS * step:
            waiting(f"{found} gives no sign of life; watching it for {found.stale_s:g} s")
            told = True
    return "dead"


def _content(stale_s: float, command: str) -> LeaseFile:
    return LeaseFile(
        owner=uuid.uuid4().hex,
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        started=_started(os.getpid()) or 0.0,
        command=command or " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200],
        since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        stale_s=stale_s,
    )


_NOBODY = LeaseFile("", "an unknown host", "", 0, 0.0, "a damaged lease", "", 30.0)


def _now() -> float:
    """Return seconds that pass while the machine sleeps, too, and that no setting of the clock moves."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _machine() -> str:
    """Return what tells one table of processes from another: the boot, the container's namespace and the name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - not a path
    except OSError:
        return ""
    return f"{socket.gethostname()} {boot} {namespace}"


def _started(pid: int) -> float | None:
    """Return when a process started, in ticks since boot, which no clock moves; None where there is none."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # The command's name, in brackets, may hold anything.
        fields = status.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else float(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def _numbers(files: Files) -> list[int]:
    stems = (name.removesuffix(".json") for name in files.names(FOLDER))
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def _path(number: int) -> str:
    return f"{FOLDER}/{number:08d}.json"


def _bytes(content: LeaseFile) -> bytes:
    return json.dumps(asdict(content), indent=1).encode()


def _write(files: Files, number: int, content: LeaseFile) -> None:
    files.write_bytes(_path(number), _bytes(content))
