"""How a process writes its log: lines of text or JSON objects, in the terminal, a file, Prefect's UI."""

from __future__ import annotations

import io
import logging
import math
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from rfss_core.errors import InputError, SettingsError
from rfss_core.events import Event
from rfss_core.settings import LogSettings
from tasks.log_context import CONTEXT_FIELDS, ContextFilter
from tasks.prefect_consoles import hush_consoles

ROOT = "rfss"
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
UNTOLD = ("name", "message", "predicted_dice")
"""Fields of events that no line carries: they may name a patient, or are as many as there are cases."""
EVENT_FIELDS = tuple(
    dict.fromkeys(part.name for kind in Event.__subclasses__() for part in fields(kind) if part.name not in UNTOLD)
)
"""What a line about an event carries besides."""
LINE_FIELDS = ("time", "level", "logger", "message", *CONTEXT_FIELDS, "event", *EVENT_FIELDS, "code", "exc_info")
"""All fields that a JSON line can have, in this order; one that does not apply is left out."""

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


class JsonLines(JsonFormatter):
    """One JSON object a line, of :data:`LINE_FIELDS` alone: what other libraries add to their records stays out."""

    def __init__(self) -> None:
        super().__init__(
            ["levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger"},
            json_ensure_ascii=False,
            json_default=str,
        )

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Add the moment, UTC in milliseconds."""
        super().add_fields(log_data, record, message_dict)
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        log_data["time"] = moment.replace("+00:00", "Z")

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Keep our fields, in their order."""
        return {name: _plain(log_data[name]) for name in LINE_FIELDS if log_data.get(name) is not None}


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it: no NaN, no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def event_fields(event: Event) -> dict[str, Any]:
    """Return what a line about an event carries: ``event``, its type, and its fields but :data:`UNTOLD`."""
    told = {part.name: getattr(event, part.name) for part in fields(event) if part.name not in UNTOLD}
    kind = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in type(event).__name__)
    if case_id := told.pop("case_id", None):
        told["case"] = [case_id]
    return {"event": kind.removeprefix("_"), **told}


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
    if json:
        hush_consoles()
        spoken = speak_json()
        ours.append(stream := logging.StreamHandler(sys.stderr))
        theirs.append(stream)
    for handler in ours:
        handler.setFormatter(formatter)
        handler.addFilter(_filter)
    before = log.level, log.propagate, threading.excepthook, warnings.propagate
    log.setLevel(settings.level.upper())
    places = [(log, handler) for handler in ours] + [(warnings, handler) for handler in ours]
    if json:
        # Else the root's handler would write our lines a second time.
        log.propagate = warnings.propagate = False
        threading.excepthook = _log_thread_error
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
        for handler, formatter_before in spoken:
            handler.setFormatter(formatter_before)
            handler.removeFilter(_filter)
        for handler in ours:
            handler.close()


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

    With text, workers keep silent below warnings, as ever: the driver tells what happens to their chunks.
    """
    if settings.format != "json":
        return
    with _worker_lock:
        if any(isinstance(handler, _WorkerHandler) for handler in log.handlers):
            return
        hush_consoles()
        speak_json()
        handler = _WorkerHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        handler.addFilter(_filter)
        log.setLevel(settings.level.upper())
        log.propagate = False
        log.addHandler(handler)
        logging.captureWarnings(capture=True)
        logging.getLogger("py.warnings").propagate = False
        logging.getLogger("py.warnings").addHandler(handler)
        logging.getLogger().addHandler(handler)
        threading.excepthook = _log_thread_error


class _WorkerHandler(logging.StreamHandler[Any]):
    """Known by its type: a worker is set up once."""


_worker_lock = threading.Lock()


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
