"""The servers behind the arms as the gateway sees them now."""

from typing import Any

from server.live import Live
from server.status import readiness


def replicas_of(live: Live) -> dict[str, Any]:
    """Health and load by model; `engine` is null where nothing is scored."""
    state = live.state
    return {
        "models": [
            {
                "name": model.name,
                "replicas": [
                    {
                        "name": replica.name,
                        "healthy": replica.healthy,
                        "breaker_open": replica.breaker.open,
                        "in_flight": replica.in_flight,
                        "waiting": replica.load.waiting,
                        "cache_use": replica.load.cache_use,
                    }
                    for replica in model.replicas
                ],
            }
            for model in state.pool.models
        ],
        "engine": None if state.engine is None else state.engine.ready,
        "problems": readiness(live)["problems"],
    }
