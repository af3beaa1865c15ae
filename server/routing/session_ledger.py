"""Conversations in the ledger, so that other workers and machines, and this one after a restart, know where they are.

Written with the decisions, off the hot path; read where this process does not know of a conversation's last turn.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, get_args

from server.ledger.row import AHEAD_S, SessionRow
from server.routing.session import Conversation, Group, Session

if TYPE_CHECKING:  # SQLAlchemy is loaded where there is a ledger
    from sqlalchemy import Connection

    from server.ledger.database import Database
    from server.ledger.writer import Writer

READ_S = 0.1
"""A request waits no longer for the database."""
TOOL_RESULT_S = 0.6
"""A tool's result waits so long for the turn that called the tool, which another worker may have answered just now."""
AGAIN_S = 0.05
MAX_ASKED = 1000
"""Conversations to look up; further ones are taken for unknown."""
MAX_UNWRITTEN = 10_000
CLOSE_S = 1.0


class SessionLedger:
    """
    Args:
        shared: whether others write conversations there, too.
        clock: Unix seconds.
    """

    def __init__(self, writer: "Writer", shared: bool, clock: Callable[[], float] = time.time) -> None:
        self._writer = writer
        self._shared = shared
        self._clock = clock
        self._lookup = Lookup(writer.database)
        self._unwritten: dict[bytes, Session] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """What is to be written is the writer's matter."""
        self._lookup.close()

    def write(self, conversation: Conversation, session: Session) -> None:
        """Have it written, within a second or so. Neither waits nor raises."""
        with self._lock:
            first = not self._unwritten
            if len(self._unwritten) < MAX_UNWRITTEN:
                self._unwritten[conversation.key] = session
        if first:
            self._writer.submit(self._save).add_done_callback(self._saved)

    def _save(self, connection: "Connection") -> None:
        from server.ledger.sessions import save

        with self._lock:
            unwritten, self._unwritten = self._unwritten, {}
        rows = [
            SessionRow(key.hex(), one.arm, one.last, one.replica, one.group, one.turn, one.at)
            for key, one in unwritten.items()
        ]
        save(connection, rows)

    def _saved(self, done: "Future[None]") -> None:
        if done.exception() is not None:  # the writer says what is wrong; until it is mended, memory must do
            with self._lock:
                self._unwritten.clear()

    async def later(self, conversation: Conversation, kept: Session | None, minutes: float) -> Session | None:
        """What the ledger knows of a conversation, where that is of a later turn than what this process has kept."""
        if not conversation.goes_on or (kept is not None and kept.turn + 1 == conversation.turn):
            return kept
        found = await self._find(conversation, minutes)
        if conversation.tool_result and self._shared:
            until = time.monotonic() + TOOL_RESULT_S
            while _missed(conversation, kept, found) and time.monotonic() < until and self._writer.problem is None:
                await asyncio.sleep(AGAIN_S)
                found = await self._find(conversation, minutes)
        if kept is not None and (found is None or kept.at >= found.at):
            return kept
        return found

    async def _find(self, conversation: Conversation, minutes: float) -> Session | None:
        try:
            row = await asyncio.wait_for(asyncio.shield(self._lookup.ask(conversation.key.hex())), READ_S)
        except TimeoutError:
            return None
        now = self._clock()
        if row is None or not now - 60 * minutes <= row.at <= now + AHEAD_S:
            return None
        group: Group | None = next((group for group in get_args(Group) if group == row.trial), None)
        return Session(row.arm, row.last, row.replica, group, row.turn, row.at)


def _missed(conversation: Conversation, *known: Session | None) -> bool:
    """Whether a turn has been answered that nobody here knows of. Clients may leave out old turns, but make up none."""
    return max((one.turn for one in known if one is not None), default=-1) + 1 < conversation.turn


class Lookup:
    """Reads conversations on a thread of its own, all that are asked for at a time with one query."""

    def __init__(self, database: "Database") -> None:
        self._database = database
        self._asked: deque[tuple[str, Future[SessionRow | None]]] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="sessions", daemon=True)
        self._thread.start()

    def ask(self, name: str) -> "asyncio.Future[SessionRow | None]":
        """Its row; None where there is none, or where the database cannot tell."""
        future: Future[SessionRow | None] = Future()
        waiting = asyncio.wrap_future(future)
        if len(self._asked) >= MAX_ASKED:
            future.set_result(None)
        else:
            self._asked.append((name, future))
            self._wake.set()
        return waiting

    def close(self) -> None:
        self._closing = True
        self._wake.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait()
            self._wake.clear()
            asked = [self._asked.popleft() for _ in range(len(self._asked))]
            found = self._read([name for name, _ in asked])
            for name, future in asked:
                if future.set_running_or_notify_cancel():
                    future.set_result(found.get(name))

    def _read(self, names: list[str]) -> "dict[str, SessionRow]":
        from server.ledger.sessions import find

        try:
            with self._database.read() as connection:
                return find(connection, names) if names else {}
        except Exception:  # the writer meets the same, and says so
            return {}
