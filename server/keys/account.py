"""One request on its key's account: requests and tokens a minute, and USD a day and a month."""

from typing import TYPE_CHECKING

from server.chat_request import ChatRequest
from server.errors import BudgetError, BudgetUnavailableError, RateLimitError
from server.http.head import Lines
from server.keys.known import Key
from server.keys.rate_limit import Buckets, Meter
from server.keys.spending import most_pico_usd, pico_usd
from server.pool import OUTPUT_LIMITS, Arm, Pool

if TYPE_CHECKING:
    from server.keys.budget import Budgets, Claim  # they load SQLAlchemy

BYTES_PER_TOKEN = 4
"""An estimate, corrected by what the upstream says that it used."""
BILLED = ("timeout", "broken")
"""Outcomes of attempts that may have generated something, though nobody knows how much."""


class Account:
    """What one request takes from its key's limits and budgets, and gives back.

    Args:
        buckets: of all keys.
        budgets: None where there is no ledger.
    """

    __slots__ = ("_claim", "_lost", "_risked", "budgets", "key", "meter", "usage")

    def __init__(self, key: Key, buckets: Buckets, budgets: "Budgets | None") -> None:
        self.key = key
        self.budgets = budgets
        limited = key.requests_per_minute is not None or key.tokens_per_minute is not None
        self.meter = Meter(buckets, key.owner, key.requests_per_minute, key.tokens_per_minute) if limited else None
        self.usage: tuple[int, int] | None = None
        """Input and output tokens, once they are known."""
        self._claim: Claim | None = None
        self._risked: int | None = None
        """Pico-USD that the attempt under way may cost; None where there is none, or it cost nothing."""
        self._lost = 0
        """Pico-USD that attempts may have cost which did not answer."""

    def count_request(self) -> None:
        """Whatever comes of it.

        Raises:
            RateLimitError: there were too many in the last minute.
        """
        if self.meter is not None and self.key.requests_per_minute is not None:
            wait_s = self.meter.take("requests", 1)
            if wait_s:
                raise RateLimitError("requests", self.key.requests_per_minute, wait_s)

    def count_tokens(self, request: ChatRequest, pool: Pool) -> None:
        """As many as it may use; `finish` corrects it.

        Raises:
            RateLimitError: there were too many in the last minute.
        """
        if self.meter is not None and self.key.tokens_per_minute is not None:
            wait_s = self.meter.take("tokens", estimated_tokens(request, pool))
            if wait_s:
                raise RateLimitError("tokens", self.key.tokens_per_minute, wait_s)

    async def cover(self, arm: Arm, request: ChatRequest) -> None:
        """An attempt is about to be sent: reserve what it may cost at the most, beside what earlier ones may have cost.

        Raises:
            BudgetError: the budget does not hold it.
            BudgetUnavailableError: nobody can tell now.
        """
        risked = 0
        if self.key.budgets_usd:
            if self.budgets is None:
                raise BudgetUnavailableError("budgets are kept in the ledger, and there is none")
            risked = most_pico_usd(arm, request)
            first = self._claim is None
            claim = self._claim = self._claim or self.budgets.claim(self.key)
            try:
                await self.budgets.reserve(claim, self._lost + risked, again=not first)
            except BudgetError:
                if first:
                    self._claim = None  # it holds nothing, so there is nothing to settle
                raise
        self._risked = risked

    def failed(self, outcome: str) -> None:
        """The attempt did not answer."""
        if outcome in BILLED and self._risked is not None:
            self._lost += self._risked
        self._risked = None

    def answered(self, status: int) -> None:
        """The attempt answers; an error costs nothing."""
        if status != 200:
            self._risked = None

    def finish(self, arm: Arm | None) -> None:
        """The request is over. What was sent and whose use nobody knows counts in full.

        Args:
            arm: that answered, or was asked last.
        """
        if self.meter is not None:
            if self.usage is not None:
                self.meter.settle(sum(self.usage))
            elif self._risked is None:
                self.meter.settle(0)
        if self._claim is not None and self.budgets is not None:
            spent = self._risked or 0
            if self.usage is not None and arm is not None:
                spent = pico_usd(arm, *self.usage)
            self.budgets.settle(self._claim, self._lost + spent)

    def lines(self) -> Lines:
        """What every answer says of the limits."""
        return b"" if self.meter is None else self.meter.lines()


def estimated_tokens(request: ChatRequest, pool: Pool) -> int:
    """A token for four bytes of the prompt, and the client's limit, else what the wordiest arm writes on average."""
    answer = 0
    for name in OUTPUT_LIMITS:
        limit = request.body.get(name)
        if isinstance(limit, int) and limit > 0:
            answer = min(answer or limit, limit)
    return request.size // BYTES_PER_TOKEN + (answer or pool.wordiest_tokens)
