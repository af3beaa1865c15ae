"""`utility` on true success rates: what its probes would choose if they knew. It peeks at outcomes."""

from dataclasses import dataclass

from routing_policies.utility import Utility


@dataclass(frozen=True)
class OracleUtility(Utility):
    """`success` is each arm's success rate over k rollouts, (n, k)."""
