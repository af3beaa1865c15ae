"""Log lines: whole, in order, one each whatever is in them, and never in anybody's way."""

import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from server import log
from server.log import Format, QueueHandler

EVIL = 'x\n2026-01-01T00:00:00.000Z INFO server: forged\r\x1b[31m\x00\u2028"'


@contextmanager
def logger_to_pipe(form: Format, **fields: Any) -> Iterator[tuple[logging.Logger, QueueHandler, int]]:
    """A logger whose handler writes to a pipe; yields the pipe's end too."""
    there, here = os.pipe()
    handler = QueueHandler(here, form, fields)
    logger = logging.Logger("server.test")
    logger.addHandler(handler)
    try:
        yield logger, handler, there
    finally:
        os.close(there)


def written(logger_lines: Any, form: Format, **fields: Any) -> str:
    """What `logger_lines` logs."""
    with logger_to_pipe(form, **fields) as (logger, handler, there):
        logger_lines(logger)
        handler.close()
        data = b""
        while piece := os.read(there, 65536):
            data += piece
    return data.decode()


def test_json_lines_hold_what_is_known() -> None:
    def lines(logger: logging.Logger) -> None:
        logger.info("request", extra={"fields": {"arm": "small", "ms": 1.5, "flags": ("a", "b"), "percentile": None}})
        logger.warning("a %s of %d", "line", 2)

    first, second = map(json.loads, written(lines, "json", worker=3).splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        **{"level": "info", "logger": "server.test", "message": "request", "worker": 3},
        **{"arm": "small", "ms": 1.5, "flags": ["a", "b"], "percentile": None},
    }
    assert (second["level"], second["message"]) == ("warning", "a line of 2")


def test_console_lines_are_for_people() -> None:
    fields = {"arm": "small", "success_probability": 0.98931, "flags": ("a", "b"), "none": None}
    shown = written(lambda logger: logger.info("request", extra={"fields": fields}), "console")
    line = r"\S+Z INFO server\.test: request arm=small success_probability=0\.9893 flags=a,b none=-\n"
    assert re.fullmatch(line, shown)


@pytest.mark.parametrize("form", ["console", "json"])
def test_no_value_can_pass_for_a_line_of_its_own(form: Format) -> None:
    def lines(logger: logging.Logger) -> None:
        logger.info("said %s", EVIL)
        logger.info("request", extra={"fields": {"arm": EVIL}})
        try:
            raise ValueError(EVIL)
        except ValueError:
            logger.exception("failed")

    shown = written(lines, form)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028]", shown)
    ours = [line for line in shown.splitlines() if not line.startswith("    ")]
    assert len(ours) == 3
    if form == "json":
        said, request, failed = map(json.loads, ours)
        assert (said["message"], request["arm"]) == (f"said {EVIL}", EVIL)
        assert failed["exception"].startswith("Traceback")


def test_lines_that_come_faster_than_they_go_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "MAX_WAITING", 100)
    with logger_to_pipe("json") as (logger, handler, there):
        dropped = []
        handler.on_drop = lambda: dropped.append(1)
        # Nobody reads: the pipe is full after some thousand lines, then the queue.
        for number in range(10_000):
            logger.info("%d %s", number, "x" * 200)
        assert len(dropped) > 1000
        data = bytearray()
        reader = threading.Thread(target=lambda: data.extend(_read_all(there)))
        reader.start()
        handler.close()
        reader.join(20)
    numbers = [int(json.loads(line)["message"].split()[0]) for line in data.splitlines()]
    assert numbers == sorted(numbers)
    assert len(numbers) + len(dropped) == 10_000


def _read_all(descriptor: int) -> bytes:
    data = bytearray()
    while piece := os.read(descriptor, 65536):
        data += piece
    return bytes(data)


def test_lines_of_several_workers_do_not_mix() -> None:
    there, here = os.pipe()
    handlers = [QueueHandler(os.dup(here), "json", {"worker": worker}) for worker in range(3)]
    os.close(here)
    for handler in handlers:
        for number in range(1000):
            handler.handle(logging.makeLogRecord({"msg": f"{number} {'x' * 300}"}))
    data = bytearray()
    reader = threading.Thread(target=lambda: data.extend(_read_all(there)))
    reader.start()
    for handler in handlers:
        handler.close()
    reader.join(20)
    os.close(there)
    lines = [json.loads(line) for line in data.splitlines()]
    for worker in range(3):
        numbers = [int(line["message"].split()[0]) for line in lines if line["worker"] == worker]
        assert numbers == list(range(1000))


def test_a_reader_that_is_gone_and_a_line_that_cannot_be_written_end_nothing() -> None:
    with logger_to_pipe("json") as (logger, handler, there):
        logger.info("lone \ud800 surrogate")
        logger.info("%d", "no number")
        logger.info("after")
        handler.close()
        first, second, last = map(json.loads, _read_all(there).splitlines())
    assert first["message"].startswith("a line was lost")
    assert second["message"].startswith("a line was lost")
    assert last["message"] == "after"
    with logger_to_pipe("json") as (logger, handler, there):
        gone = os.dup(there)
        os.close(gone)
    logger.info("to nobody")
    handler.close()
