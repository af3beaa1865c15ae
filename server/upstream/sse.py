"""Server-sent events as bytes: whole events are passed on as they come, the usage chunk is read and, if only we
asked for it, taken out. Nothing else is parsed."""

import json
import re
from collections.abc import Callable
from typing import Any

USAGE = b'"usage":'
BLANK_LINES = (b"\n\n", b"\r\n\r\n", b"\r\r")
NO_CHOICES = re.compile(rb'"choices":\s*\[\]')
RAW_DECODE = json.JSONDecoder().raw_decode
MAX_EVENT_BYTES = 8 * 1024 * 1024


class EventRelay:
    """Holds back only what is not yet a whole event."""

    def __init__(self, drop_usage: bool) -> None:
        self.usage: dict[str, Any] | None = None
        """The stream's usage, once it has come."""
        self._drop_usage = drop_usage
        self._rest = b""

    def feed(self, chunk: bytes) -> bytes:
        """The bytes to pass on now."""
        data = self._rest + chunk if self._rest else chunk
        end = data.rfind(b"\n\n") + 2
        if b"\r" in data:
            end = max(_ends(data.rfind, 0, len(data)), default=1)
        if end == 1:
            # No whole event. A client must not wait for ever for one that never ends.
            self._rest = b"" if len(data) > MAX_EVENT_BYTES else data
            return data if not self._rest else b""
        self._rest = data[end:]
        whole = data[:end] if self._rest else data
        return self._read_usage(whole) if b"[]" in whole else whole

    def flush(self) -> bytes:
        """What was held back, at the stream's end."""
        rest, self._rest = self._rest, b""
        return rest

    def _read_usage(self, events: bytes) -> bytes:
        kept, passed = [], 0
        for found in NO_CHOICES.finditer(events):
            at = found.start()
            if at < passed:
                continue
            begin = max(_ends(events.rfind, passed, at), default=passed)
            end = min(_ends(events.find, at, len(events)))
            usage = parse_usage(events[begin:end])
            if usage is not None:
                self.usage = usage
                if self._drop_usage:
                    kept.append(events[passed:begin])
                    passed = end
        return b"".join((*kept, events[passed:])) if kept else events


def _ends(find: Callable[[bytes, int, int], int], start: int, stop: int) -> list[int]:
    """Where an event ends, as `find` finds it, by each of the three ways to spell a line's end."""
    return [place + len(blank) for blank in BLANK_LINES if (place := find(blank, start, stop)) >= 0]


def parse_usage(data: bytes) -> dict[str, Any] | None:
    """The last `usage` object in JSON text, found from its end; None where there is none.

    A quotation mark inside a JSON string is escaped, so an answer's own text cannot be taken for it.
    """
    start = data.rfind(USAGE)
    if start < 0:
        return None
    try:
        usage, _ = RAW_DECODE(data[start + len(USAGE) :].decode().lstrip())
    except (ValueError, RecursionError):
        return None
    return usage if isinstance(usage, dict) else None


def error_event(body: bytes) -> bytes:
    """An OpenAI error object as a stream's last event."""
    return b"data: " + body + b"\n\n"


def ask_for_usage(body: dict[str, Any]) -> None:
    """Let a streamed request's body ask for the usage chunk, other stream options kept."""
    body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
