"""Which arm and which replica a conversation is on, remembered while it goes on.

A conversation is told by its `x-session-id`, else by how it begins. What is kept holds hashes of that, never a text.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

from probes.prompt import text_of
from server.chat_request import ChatRequest

if TYPE_CHECKING:
    from server.routing.decision import Decision

Group = Literal["canary", "control"]
"""Of a trial of two policies: who goes by the candidate, and who goes on as before."""

MAX_SESSIONS = 50_000
"""In memory, of each worker; the one longest not gone on with is forgotten first."""
TEXT_BYTES = 4096
"""Of a message so much is read at its beginning, and so much at its end."""
TOOL_ROLES = ("tool", "function")
"""Of messages with which what an arm called answers it: the arm goes on."""


@dataclass(frozen=True, slots=True)
class Session:
    """What is remembered of a conversation."""

    arm: str
    """It stays on this one; empty where all its turns were pinned."""
    last: str
    """The one that answered last, to which the results of its tools go; another than `arm` after an audit or a pin."""
    replica: str | None
    """Which of `last`'s it was."""
    group: Group | None
    """The trial's that it takes part in."""
    turn: int
    """How many answers it held when it was last asked for another."""
    at: float
    """When that was, in Unix seconds."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What concerns its session of one request."""

    key: bytes
    turn: int
    """How many answers it holds."""
    tool_result: bool
    """Whether it goes on with what the last answer's tools found."""
    named: bool
    """Whether the client gave it an `x-session-id`."""
    may_go_on: bool
    """Whether there may be a next turn: texts to complete, without a name, have none."""
    kept: Session | None = None
    """What is remembered of it."""

    @property
    def goes_on(self) -> bool:
        """Whether there may be something to remember."""
        return self.named or self.tool_result or self.turn > 0


def conversation_of(request: ChatRequest, key_name: str | None) -> Conversation:
    """
    Args:
        key_name: of the client's API key: what one key's conversations are called says nothing of another's.
    """
    messages = request.messages
    turn = sum(message.get("role") == "assistant" for message in messages)
    tool_result = bool(messages) and messages[-1].get("role") in TOOL_ROLES
    name = request.head.session
    owner = (key_name or "").encode()
    hashed = blake2b(b"%d %b %b" % (len(owner), owner, b"id " if name else b"begins "), digest_size=16)
    if name:
        hashed.update(name)
    else:
        _hash_beginning(hashed, messages)
    may_go_on = bool(name) or request.path != "/v1/completions"
    return Conversation(hashed.digest(), turn, tool_result, bool(name), may_go_on)


def _hash_beginning(hashed: "blake2b", messages: list[dict[str, Any]]) -> None:
    """All up to the first user message. Of long texts both ends and the length: one reads no megabytes for this."""
    for message in messages:
        text = text_of(message.get("content"))
        for part in (text[:TEXT_BYTES], text[TEXT_BYTES:][-TEXT_BYTES:]):
            hashed.update(part.encode(errors="replace"))
        hashed.update(b"\0%d\0" % len(text))
        if message.get("role") == "user":
            break


class Sessions:
    """
    Args:
        most: sessions to remember.
        clock: Unix seconds.
    """

    def __init__(self, most: int = MAX_SESSIONS, clock: Callable[[], float] = time.time) -> None:
        self._most = most
        self._clock = clock
        # Of a plain dict the first key takes the longer to find the more have been deleted before it.
        self._kept: OrderedDict[bytes, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, conversation: Conversation, minutes: float) -> Session | None:
        """What is remembered of it, if it went on within so many minutes. Changes nothing."""
        if not conversation.goes_on:
            return None
        kept = self._kept.get(conversation.key)
        if kept is None or kept.at + 60 * minutes < self._clock():
            return None
        return kept

    def remember(
        self, conversation: Conversation, decision: "Decision", names: list[str], replica: str | None
    ) -> Session:
        """An arm answers.

        Args:
            names: of the pool's arms.
            replica: its name.

        Returns:
            What is remembered.
        """
        arm = last = decision.arm
        if decision.path == "shadow":
            arm = last = decision.policy_arm  # what would have been, so that the next turn is decided as if it were
        elif decision.path == "audit":
            arm = decision.policy_arm
        stays, kept = names[arm], conversation.kept
        if kept is not None and (decision.path == "audit" or (conversation.tool_result and decision.path == "sticky")):
            stays = kept.arm
        group = decision.group
        if decision.pinned:  # its tools' results follow it, the conversation does not
            stays, group = ("", None) if kept is None else (kept.arm, kept.group)
        now = self._clock()
        session = Session(stays, names[last], replica, group, conversation.turn, now)
        self._kept.pop(conversation.key, None)  # what was gone on with last stands last
        self._kept[conversation.key] = session
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return session
