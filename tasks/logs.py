"""How a process writes its log: lines of text or JSON objects, in the terminal, a file, Prefect's UI."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from rfss_core.errors import InputError, SettingsError
from rfss_core.settings import LogSettings
from tasks.json_lines import JsonLines
from tasks.log_context import ContextFilter

ROOT = "rfss"
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
log = logging.getLogger(ROOT)
log_settings: ContextVar[LogSettings | None] = ContextVar("rfss_log_settings", default=None)
"""What the command line was told; the environment counts without it."""
_filter = ContextFilter()
# On the logger itself: Prefect's handler, which takes the lines to its UI, sees what ours see.
log.addFilter(_filter)


def as_json() -> bool:
    """Return whether what a command says goes out as JSON; a variable that cannot be is another's trouble."""
    try:
        return current_log_settings().format == "json"
    except SettingsError:
        return False


def say(message: str, level: int = logging.INFO, **fields: Any) -> None:
    """Write one JSON line to standard error, whether or not a log is open.

    Args:
        message: of any number of lines.
        level: of :mod:`logging`.
        fields: of :data:`LINE_FIELDS`.
    """
    record = log.makeRecord(ROOT, level, __file__, 0, message, (), None, extra=fields)
    _filter.filter(record)
    print(JsonLines().format(record), file=sys.stderr, flush=True)


def current_log_settings() -> LogSettings:
    """Return how this process writes its log.

    Raises:
        SettingsError: a variable of the environment that cannot be.
    """
    return log_settings.get() or LogSettings.from_environment()


@contextmanager
def open_logs(settings: LogSettings, *files: Path) -> Iterator[None]:
    """Write the log until the end of the block.

    Text goes to the files alone: a terminal has its bars. JSON goes to standard error besides, with what other
    libraries and Prefect would have written there, so that each of its lines is one object.

    Args:
        settings: format and level; ``file`` is one more file.
        files: such as a workspace's ``run.log``.

    Raises:
        InputError: a file cannot be written.
    """
    json = settings.format == "json"
    formatter = JsonLines() if json else logging.Formatter(TEXT)
    warnings = logging.getLogger("py.warnings")
    ours: list[logging.Handler] = [_file_handler(path) for path in (*files, settings.file) if path is not None]
    theirs: list[logging.Handler] = []
    spoken: list[tuple[logging.Handler, logging.Formatter | None]] = []
    hushed: list[tuple[logging.Handler, int]] = []
    if json:
        # Our own handler at the root has Prefect's lines with the run's context.
        hushed = hush_consoles()
        spoken = speak_json()
        ours.append(logging.StreamHandler(sys.stderr))
        theirs.append(logging.StreamHandler(sys.stderr))
        theirs[0].addFilter(_matters)
    for handler in [*ours, *theirs]:
        handler.setFormatter(formatter)
        handler.addFilter(_filter)
    before = log.level, log.propagate, threading.excepthook, warnings.propagate
    log.setLevel(settings.level.upper())
    places = [(log, handler) for handler in ours] + [(warnings, handler) for handler in ours]
    if json:
        # Else the root's handler would write our lines a second time.
        log.propagate = warnings.propagate = False
        threading.excepthook = _log_thread_error
        logging.captureWarnings(capture=True)
        places += [(logging.getLogger(), handler) for handler in theirs]
    for logger, handler in places:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, handler in places:
            logger.removeHandler(handler)
        log.setLevel(before[0])
        _, log.propagate, threading.excepthook, warnings.propagate = before
        if json:
            logging.captureWarnings(capture=False)
        for handler, level in hushed:
            handler.setLevel(level)
        for handler, formatter_before in spoken:
            handler.setFormatter(formatter_before)
            handler.removeFilter(_filter)
        for handler in [*ours, *theirs]:
            handler.close()


def hush_consoles() -> list[tuple[logging.Handler, int]]:
    """Keep Prefect's own lines out of the terminal, since its UI has them; return the handlers with their levels."""
    from prefect.logging.handlers import PrefectConsoleHandler

    found: dict[logging.Handler, int] = {}
    for name in ["", *logging.root.manager.loggerDict]:
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, PrefectConsoleHandler) and handler not in found:
                found[handler] = handler.level
                handler.setLevel(logging.CRITICAL + 1)
    return list(found.items())


def _matters(record: logging.LogRecord) -> bool:
    """Return whether a line of another library is worth one of ours: Dask's tell of every connection."""
    return record.levelno >= logging.WARNING or record.name.startswith("prefect.")


def speak_json() -> list[tuple[logging.Handler, logging.Formatter | None]]:
    """Let the handlers that other libraries put on the terminal write JSON lines; return their formatters."""
    found: list[tuple[logging.Handler, logging.Formatter | None]] = []
    for name in list(logging.root.manager.loggerDict):
        for handler in logging.getLogger(name).handlers:
            # Lines that are kept in memory (pytest's) or in a file are not the terminal's.
            elsewhere = isinstance(handler, logging.FileHandler) or isinstance(
                getattr(handler, "stream", None), io.StringIO
            )
            if isinstance(handler, logging.StreamHandler) and not elsewhere and handler not in [h for h, _ in found]:
                found.append((handler, handler.formatter))
                handler.setFormatter(JsonLines())
                handler.addFilter(_filter)
    return found


def write_worker_log(settings: LogSettings) -> None:
    """Let a worker process write JSON lines to its standard error, where the driver does; once is enough.

    With text, workers keep silent below warnings, as ever: the driver tells what happens to their chunks. A file is the
    driver's alone: a worker may be on another machine.
    """
    with _worker_lock:
        if settings.format == "json" and not _worker_log:
            _worker_log.append(opened := open_logs(settings.model_copy(update={"file": None})))
            opened.__enter__()


_worker_lock = threading.Lock()
_worker_log: list[AbstractContextManager[None]] = []
"""Of a worker process: open until it ends."""


def _file_handler(path: Path) -> logging.FileHandler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise InputError(f"log file '{path}' cannot be written: {error.strerror}; give another") from error


def _log_thread_error(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is not None and arguments.exc_type is not SystemExit:
        trace = (arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
        log.error("a thread ended with %s", arguments.exc_type.__name__, exc_info=trace)
