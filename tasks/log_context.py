"""What log lines carry besides their message: the run, the stage, the chunk, its cases. No source path, ever.

The context travels with the work into worker processes and threads (:mod:`tasks.worker`), because context variables do
not: a line of a worker names the same run as the driver's.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from rfss_core.settings import LogSettings

CONTEXT_FIELDS = ("run", "flow_run", "mlflow_run", "stage", "chunk", "case", "worker")
CASES_NAMED = 20
"""Cases of a chunk that a line lists."""
SOURCE = "<source>"
"""Stands in log lines for the path of a source file."""
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class LogContext:
    """Picklable."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    """Folders of images and labels: what lies in them is not named."""
    settings: LogSettings = field(default_factory=LogSettings)
    """Of the driver's process, for the workers'."""

    def with_fields(self, **fields: Any) -> LogContext:
        """Return the context with more fields; None and empty lists say nothing."""
        return replace(self, fields={**self.fields, **{name: value for name, value in fields.items() if value}})


_inner: ContextVar[LogContext | None] = ContextVar("rfss_log_context", default=None)
_outer: list[LogContext] = []
"""Of this process's runs, the innermost last: what threads without a context of their own belong to."""
_lock = threading.Lock()


def log_context() -> LogContext:
    """Return the context of this thread, else of the process's run."""
    if (own := _inner.get()) is not None:
        return own
    with _lock:
        return _outer[-1] if _outer else LogContext()


@contextmanager
def log_fields(context: LogContext | None = None, **fields: Any) -> Iterator[None]:
    """Let the lines of this thread carry fields.

    Args:
        context: to begin with. Default: the present one.
        fields: of :data:`CONTEXT_FIELDS`.
    """
    token = _inner.set((context or log_context()).with_fields(**fields))
    try:
        yield
    finally:
        _inner.reset(token)


@contextmanager
def run_context(context: LogContext) -> Iterator[None]:
    """Let the lines of all threads of this process carry a run's context."""
    with _lock:
        _outer.append(context)
    try:
        with log_fields(context):
            yield
    finally:
        with _lock:
            _outer.remove(context)


def unit_fields(unit: Any) -> dict[str, Any]:
    """Return the fields that a unit of work gives: its id, and its cases where it has some."""
    return {"chunk": getattr(unit, "id", None), "case": list(getattr(unit, "case_ids", ()))[:CASES_NAMED]}


def source_folders(*places: str | None) -> tuple[str, ...]:
    """Return the folders that settings such as ``images`` name: absolute; of a glob the part before its wildcards."""
    from rfss_core.imaging.names import EXTENSIONS

    found: list[str] = []
    for place in places:
        if not place:
            continue
        fixed = Path(place if not (wild := _GLOB.search(place)) else place[: wild.start()].rpartition("/")[0] or "/")
        if fixed.name.lower().endswith(EXTENSIONS):
            fixed = fixed.parent
        for folder in (fixed.expanduser().absolute(), fixed.expanduser().resolve()):
            if str(folder) not in (*found, folder.anchor):
                found.append(str(folder))
    return tuple(sorted(found, key=len, reverse=True))


def without_sources(text: str, folders: tuple[str, ...]) -> str:
    """Return a text in which :data:`SOURCE` stands for every path below the folders."""
    if not any(folder in text for folder in folders):
        return text
    return _paths(folders).sub(SOURCE, text)


@lru_cache(maxsize=32)
def _paths(folders: tuple[str, ...]) -> re.Pattern[str]:
    from rfss_core.imaging.names import EXTENSIONS

    # Names of files may hold spaces and quotes: a path goes on to the extension of an image where there is one.
    roots = "|".join(re.escape(folder) for folder in folders)
    endings = "|".join(re.escape(extension) for extension in EXTENSIONS)
    return re.compile(rf"(?:{roots})/(?:[^\n]*?(?:{endings})(?![A-Za-z0-9])|[^\s'\"]+)", re.IGNORECASE)


class ContextFilter(logging.Filter):
    """Puts the context into each record, and takes the paths of sources out of it; done twice it changes nothing."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record in place: every handler after this one sees it so."""
        context = log_context()
        for name, value in context.fields.items():
            if not hasattr(record, name):
                setattr(record, name, value)
        if not context.sources:
            return True
        if record.exc_info:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        if record.exc_text:
            record.exc_text = without_sources(record.exc_text, context.sources)
        message = record.getMessage()
        if (clean := without_sources(message, context.sources)) != message:
            record.msg, record.args = clean, ()
        return True
