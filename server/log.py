"""Logging off the hot path: the event loop leaves a record in a bounded queue, a thread writes what is there.

    with logging_to_stderr("info", "json") as lines:
        ...

A record's `extra={"fields": {...}}` become keys of its JSON line, and `key=value` on a console.
"""

import logging
import os
import re
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any, ClassVar, Literal

import orjson

Format = Literal["console", "json"]
FORMATS: tuple[Format, ...] = ("console", "json")
LEVELS = ("debug", "info", "warning", "error")

MAX_WAITING = 10_000
"""Lines; further ones are dropped and counted."""
GATHER_S = 0.05
"""Lines that come within this time are written together: waking a thread for each would cost the loop more."""
MOST_BYTES = 2**16
"""That are written to a file at once, which takes them in one piece; a pipe takes only `select.PIPE_BUF` so."""
CLOSE_S = 2.0
STDERR = 2
AS_IT_IS = frozenset((str, int))
"""Most values are words and whole numbers."""
OF_PARTS = frozenset((str, tuple, list))
MILLISECONDS = [f".{number:03}Z" for number in range(1000)]
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {
    code: f"\\u{code:04x}" for code in (0x2028, 0x2029)
}

UNESCAPED = re.compile(rb"\x7f|\xc2[\x80-\x9f]|\xe2\x80[\xa8\xa9]")
"""What JSON leaves as it is and some terminals and readers take for a command or a line's end."""


class FieldsRecord(logging.LogRecord):
    """A record without the place where it was made, which nobody shows and takes most of a record's time."""

    TEMPLATE: ClassVar[dict[str, Any]] = logging.makeLogRecord({"levelno": logging.INFO, "levelname": "INFO"}).__dict__

    def __init__(self, name: str, message: str, fields: dict[str, Any]) -> None:
        now = time.time()
        self.__dict__ = record = self.TEMPLATE.copy()
        record["name"], record["msg"], record["fields"] = name, message, fields
        record["created"], record["msecs"] = now, now % 1 * 1e3


def log_fields(logger: logging.Logger, message: str, fields: dict[str, Any]) -> None:
    """The same as `logger.info(message, extra={"fields": fields})`, for each request's line: it goes straight to the
    root's handlers, which are all there are."""
    if logger.isEnabledFor(logging.INFO):
        record = FieldsRecord(logger.name, message, fields)
        for handler in logging.root.handlers:
            handler.handle(record)


class QueueHandler(logging.Handler):
    """Hands records to a thread that writes them to a file descriptor.

    Args:
        descriptor: ours to close.
        fields: stand in every line, such as the worker's number.
    """

    def __init__(self, descriptor: int, form: Format, fields: dict[str, Any] | None = None) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._most = MOST_BYTES if stat.S_ISREG(os.fstat(descriptor).st_mode) else select.PIPE_BUF
        self._line = json_line if form == "json" else console_line
        self._fields = fields or {}
        self._waiting: deque[logging.LogRecord] = deque()
        self._filled, self._closing = threading.Event(), threading.Event()
        self.on_drop: Callable[[], None] = lambda: None
        """Called for each line that is lost."""
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def handle(self, record: logging.LogRecord) -> bool:
        """Without the base class's lock and filters: a deque needs neither, and this runs on the event loop."""
        if len(self._waiting) >= MAX_WAITING:
            self.on_drop()
            return False
        self._waiting.append(record)
        if not self._filled.is_set():
            self._filled.set()
        return True

    def emit(self, record: logging.LogRecord) -> None:
        self.handle(record)

    def close(self) -> None:
        """Write what waits, for `CLOSE_S` at the most: whoever reads our log may have stopped."""
        self._closing.set()
        self._filled.set()
        self._thread.join(CLOSE_S)
        super().close()

    def _write(self) -> None:
        closing = False
        while not closing:
            self._filled.wait()
            closing = self._closing.wait(GATHER_S)
            self._filled.clear()  # before we look: what comes from now on sets it again
            self._write_waiting()
        os.close(self._descriptor)

    def _write_waiting(self) -> None:
        """Whole lines at once, few enough that no other process's come in between."""
        lines = bytearray()
        while self._waiting:
            line = self._bytes(self._waiting.popleft())
            if len(lines) + len(line) > self._most:
                write_all(self._descriptor, lines)
                lines = bytearray()
            lines += line
        write_all(self._descriptor, lines)

    def _bytes(self, record: logging.LogRecord) -> bytes:
        fields = getattr(record, "fields", {})
        if self._fields:
            fields = {**self._fields, **fields}
        try:
            return self._line(record, fields)
        except Exception as error:  # a line that cannot be written must not end all logging
            broken = logging.makeLogRecord({**record.__dict__, "msg": f"a line was lost: {error!r}", "args": ()})
            return self._line(broken, self._fields)


def json_line(record: logging.LogRecord, fields: dict[str, Any]) -> bytes:
    """One JSON object: time, level, logger, message, then the fields."""
    entry = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
    entry |= {"message": record.getMessage(), **fields}
    if record.exc_info:
        entry["exception"] = _exception(record)
    line = orjson.dumps(entry, default=str, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)
    if line.isascii() and b"\x7f" not in line:  # which most are
        return line
    return UNESCAPED.sub(lambda found: b"\\u%04x" % ord(found[0].decode()), line)


def console_line(record: logging.LogRecord, fields: dict[str, Any]) -> bytes:
    """For people: what follows the first line is indented, so that no value can pass for a line of ours."""
    shown = [value if value and type(value) in AS_IT_IS else _shown(value) for value in fields.values()]
    text = _form(tuple(fields)) % (record.getMessage(), *shown)
    if record.exc_info:
        text = f"{text}\n{_exception(record)}"
    if not text.isprintable():  # few are not
        text = "\n    ".join(line.translate(CONTROLS) for line in text.split("\n"))
    return f"{_time(record)} {record.levelname} {record.name}: {text}\n".encode("utf-8", "backslashreplace")


@contextmanager
def logging_to_stderr(level: str, form: Format, fields: dict[str, Any] | None = None) -> Iterator[QueueHandler]:
    """All loggers write to stderr until the end, when what waits is written."""
    # What a line does not show need not be found out.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # as the logging HOWTO says: do not look for the caller
    handler = QueueHandler(os.dup(STDERR), form, fields)
    root = logging.getLogger()
    before, old_level = list(root.handlers), root.level
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Others would log each of our requests again, some with headers, which may hold keys; and uvicorn a line for every
    # request that we refuse, which we count. Alembic names each of its plug-ins.
    quiet = {"httpx": "WARNING", "httpcore": "WARNING", "uvicorn": "ERROR", "alembic.runtime.plugins": "WARNING"}
    for name, least in quiet.items():
        logging.getLogger(name).setLevel(least)
    try:
        yield handler
    finally:
        root.handlers[:] = before
        root.setLevel(old_level)
        handler.close()


def _time(record: logging.LogRecord) -> str:
    """UTC, to the millisecond."""
    return _second(int(record.created)) + MILLISECONDS[int(record.msecs)]


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


@cache  # there are as many as places that log
def _form(names: tuple[str, ...]) -> str:
    """Takes a message and the fields' values."""
    return " ".join(["%s", *[name.replace("%", "%%") + "=%s" for name in names]])


def _exception(record: logging.LogRecord) -> str:
    assert record.exc_info
    return logging.Formatter().formatException(record.exc_info)


def _shown(value: Any) -> Any:
    kind = type(value)
    if kind is float:
        return "%.4g" % value  # noqa: UP031  # quicker
    if value is None or (kind in OF_PARTS and not value):
        return "-"
    return ",".join(map(str, value)) if kind is tuple or kind is list else value


def write_all(descriptor: int, data: bytearray) -> None:
    """Where nobody reads any more there is nobody to tell."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:  # whoever shares our terminal may have made it so
            select.select([], [descriptor], [])
        except OSError:
            return
