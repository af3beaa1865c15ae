"""What an arm's answers come to, counted in plain numbers, and passed to the metrics now and then.

Every answer changes counters of all arms, each of which takes a lock: together they cost a tenth of a request.
"""

from collections.abc import Sequence

from server.metrics import ArmSeries
from server.pool import Arm


class Tally:
    """Answers of one arm whose usage is known.

    Args:
        arm: index of the arm that answers.
        arms: all of the pool.
        series: by arm.
    """

    __slots__ = ("_answers", "_arm", "_arms", "_inputs", "_outputs", "_series")

    def __init__(self, arm: int, arms: Sequence[Arm], series: Sequence[ArmSeries]) -> None:
        self._arm = arm
        self._arms = arms
        self._series = series
        self._answers = self._inputs = self._outputs = 0

    def count(self, input_tokens: int, output_tokens: int) -> None:
        """One answer."""
        self._answers += 1
        self._inputs += input_tokens
        self._outputs += output_tokens

    def pass_on(self) -> None:
        """Have the metrics say what has been counted since they last did; on the event loop, where it is counted."""
        answers, inputs, outputs = self._answers, self._inputs, self._outputs
        if not answers:
            return
        self._answers = self._inputs = self._outputs = 0
        own = self._series[self._arm]
        own.input_tokens.inc(inputs)
        own.output_tokens.inc(outputs)
        own.cost.inc(self._arms[self._arm].cost_usd(inputs, outputs))
        for i, (arm, series) in enumerate(zip(self._arms, self._series, strict=True)):
            always = outputs if i == self._arm else answers * arm.mean_output_tokens
            series.cost_always.inc(arm.cost_usd(inputs, always))
