"""All parts of one running gateway, built once in `app.py` and handed to every request."""

import asyncio
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from probes.engine.base import Engine
from routing_policies.base import Policy
from server.config import Settings
from server.dashboard.cache import Cache
from server.errors import DrainingError, OverloadedError
from server.http.bodies import Bodies, Held
from server.http.head import RequestHead
from server.http.watch import Watch
from server.keys.account import Account
from server.keys.known import Key, Keyring
from server.keys.rate_limit import Buckets
from server.metrics import Metrics
from server.pool import Pool
from server.predictor import Predictor
from server.routing.experiment import Canary
from server.routing.policies import Policies
from server.routing.session import Sessions
from server.routing.session_ledger import SessionLedger
from server.sections.outcomes import Audit
from server.sections.policy import RoutingField
from server.sections.routing import Session, Shadow
from server.tally import Tally
from server.upstream.retry_budget import RetryBudget

if TYPE_CHECKING:  # they bring SQLAlchemy
    from server.keys.budget import Budgets
    from server.ledger.writer import Writer
    from server.outcomes.recorder import OutcomeRecorder

TICK_S = 0.1
"""Requests' time limits are kept to that precision, and what a worker tells the others' scrapes is no older."""


@dataclass(slots=True)
class State:
    settings: Settings
    """What every request asks of them stands below, too: attributes of pydantic's models take ten times as long."""
    pool: Pool
    policies: Policies
    predictor: Predictor
    engine: Engine | None
    """None where no arm has a probe."""
    metrics: Metrics
    admin_sha256: bytes | None = None
    """Hash of the admin key; None where there is none."""
    ledger: "Writer | None" = None
    """None where none is configured."""
    outcomes: "OutcomeRecorder | None" = None
    """None where there is no ledger."""
    canary: Canary | None = None
    """None without a trial."""
    sessions: Sessions | None = None
    """None where nothing asks for telling conversations apart."""
    keys: Keyring | None = None
    """None where nothing asks for keys."""
    buckets: Buckets = field(default_factory=Buckets)
    """Of the keys' limits; they outlive this state."""
    budgets: "Budgets | None" = None
    """None without keys, or without a ledger."""
    session_ledger: SessionLedger | None = None
    """None without a ledger."""
    dashboard: Cache = field(default_factory=Cache)
    """What the dashboard's viewers share."""
    retries: RetryBudget = field(default_factory=RetryBudget)
    chance: Random = field(default_factory=Random)
    """Draws what is audited."""
    constant_choices: dict[Policy, int] = field(default_factory=dict)
    """What policies that read costs alone choose among all arms at their mean costs."""
    admitted: "set[Admission]" = field(default_factory=set)
    """Requests in flight."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while nothing is in flight."""
    loop: asyncio.AbstractEventLoop = field(init=False)
    """Once it serves, as what follows."""
    tallies: list[Tally] = field(default_factory=list)
    """By arm."""
    bodies: Bodies = field(init=False)
    most_in_flight: int = field(init=False)
    most_body_bytes: int = field(init=False)
    session: Session | None = field(init=False)
    audit: Audit | None = field(init=False)
    shadow: Shadow | None = field(init=False)
    safe_arm: str | None = field(init=False)
    allow_request: Sequence[RoutingField] = field(init=False)
    keeps_prompts: bool = field(init=False)
    """Whether the ledger does."""
    _ticking: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.idle.set()
        settings, limits = self.settings, self.settings.limits
        self.bodies = Bodies(limits.bodies_mb)
        self.most_in_flight, self.most_body_bytes = limits.in_flight, int(limits.body_mb * 2**20)
        self.session, self.audit, self.shadow = settings.session, settings.audit, settings.shadow
        self.safe_arm, self.allow_request = settings.out_of_distribution.safe_arm, settings.allow_request
        self.keeps_prompts = settings.ledger is not None and settings.ledger.prompts

    @property
    def in_flight(self) -> int:
        return len(self.admitted)

    def pass_on(self) -> None:
        """Have the metrics say all that has been counted."""
        for tally in self.tallies:
            tally.pass_on()

    def account(self, head: RequestHead) -> Account | None:
        """Who asks is known from here on, in `head.key` too; None where nothing asks for keys.

        Raises:
            InvalidKeyError: the request bears no valid key.
        """
        if self.keys is None:
            return None
        head.key = self.keys.find(head.secret)
        return Account(head.key, self.buckets, self.budgets)

    def budget_ratios(self) -> dict[str, float]:
        """What share of its budget each key has used, by name; asks the database now and then."""
        return {} if self.keys is None or self.budgets is None else self.budgets.ratios(self.keys.keys)

    def admit(self) -> "Admission":
        """A place for one request, to be entered."""
        return Admission(self)

    def tick(self) -> None:
        """One timer looks after the time of all requests in flight: one for each would cost each microseconds."""
        now = self.loop.time()
        for admission in list(self.admitted):
            admission.check(now)
        self._ticking = bool(self.admitted)
        if self._ticking:
            self.loop.call_later(TICK_S, self.tick)
        self.pass_on()

    def watch_time(self) -> None:
        """There is a request in flight."""
        if not self._ticking:
            self.tick()

    def end_all(self) -> None:
        """Have every request in flight end now, with an error that says why."""
        for admission in list(self.admitted):
            admission.end(DrainingError("the gateway is being stopped; ask again"))


class Admission(Watch):
    """One of `limits.in_flight` places, and what may end the request that holds it.

    Raises:
        OverloadedError: all are taken.
    """

    def __init__(self, state: State) -> None:
        super().__init__(state.loop)
        self._state = state
        self.body = Held(state.bodies)

    def __enter__(self) -> Self:
        state = self._state
        if len(state.admitted) >= state.most_in_flight:
            raise OverloadedError("too many requests in flight (limits.in_flight); try again shortly")
        state.admitted.add(self)
        state.idle.clear()
        state.watch_time()
        return super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        state = self._state
        self.body.release()
        state.admitted.discard(self)
        if not state.admitted:
            state.idle.set()
        super().__exit__(kind, error, at)


def current(scope: MutableMapping[str, Any]) -> State:
    """What serves a request that begins now; it keeps this one to its end, whatever is reloaded meanwhile."""
    state: State = scope["state"]["live"].state
    return state


def key_of(scope: MutableMapping[str, Any]) -> Key | None:
    """Whose request this is; None where nothing asks for keys. Of what is no raw route: those have `head.key`."""
    key: Key | None = scope.get("user_key")
    return key
