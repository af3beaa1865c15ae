"""Which of several replicas takes a request."""

from server.upstream.health import parse_load
from server.upstream.replica import MAX_ASIDE_S, SLOW_START_S, Load, Replica, Wellness, choose

NOW = 1000.0
METRICS = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="small"} 3.0
vllm:num_requests_running{engine="1",model_name="small"} 4.0
vllm:num_requests_waiting{engine="0",model_name="small"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="small"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="small"} 0.5
vllm:prompt_tokens_total{engine="0"} 1e+09
"""


def replicas(count: int) -> list[Replica]:
    return [Replica.at(f"http://host-{i}:80/v1", {}) for i in range(count)]


def chosen(those: list[Replica], prefix: bytes | None = None) -> str:
    replica = choose(those, [], NOW, prefix)
    assert replica is not None
    return replica.name.removeprefix("host-").removesuffix(":80")


def test_equals_take_turns() -> None:
    those = replicas(3)
    order = ""
    for i in range(6):
        replica = choose(those, [], NOW + i, None)
        assert replica is not None
        order += replica.name[5]
    assert order == "012012"


def test_the_least_busy_is_chosen() -> None:
    first, second = those = replicas(2)
    first.in_flight = 2
    assert chosen(those) == "1"
    second.load = Load(running=5, waiting=0, ours=0)
    assert chosen(those) == "0", "others' requests count"
    first.load = Load(running=0, waiting=3, ours=0)
    assert chosen(those) == "1", "waiting requests count twice"


def test_our_own_requests_count_once() -> None:
    first, _ = those = replicas(2)
    first.load = Load(running=4, ours=4)
    assert chosen(those) == "0"


def test_a_full_cache_counts() -> None:
    first, second = those = replicas(2)
    first.in_flight, second.in_flight = 3, 4
    first.load = Load(cache_use=0.99)
    assert chosen(those) == "1"


def test_what_is_not_well_is_chosen_only_where_it_may_be() -> None:
    first, second = those = replicas(2)
    first.healthy = False
    second.in_flight = 100
    assert chosen(those) == "1"
    second.set_aside(1e9, NOW)
    assert choose(those, [], NOW, None) is None
    assert choose(those, [], NOW, None, Wellness.SET_ASIDE) is second
    assert choose(those, [second], NOW, None, Wellness.SET_ASIDE) is None
    assert choose(those, [second], NOW, None, Wellness.UNHEALTHY) is first
    assert choose(those, [], NOW + MAX_ASIDE_S, None) is second


def test_a_replica_that_came_back_gets_few_requests_at_first() -> None:
    first, second = those = replicas(2)
    first.recovered(NOW)
    second.in_flight = 5
    assert chosen(those) == "1"
    assert choose(those, [], NOW + SLOW_START_S, None) is first


def test_a_prefix_keeps_its_replica() -> None:
    those = replicas(4)
    prefixes = [f"conversation {i}".encode() for i in range(200)]
    homes = {prefix: chosen(those, prefix) for prefix in prefixes}
    assert set(homes.values()) == {"0", "1", "2", "3"}
    assert all(chosen(those, prefix) == home for prefix, home in homes.items())
    fewer = [one for one in those if one.name != "host-3:80"]
    assert all(chosen(fewer, prefix) == home for prefix, home in homes.items() if home != "3")


def test_a_prefix_leaves_a_replica_that_is_much_busier() -> None:
    those = replicas(2)
    prefix = b"a long system prompt"
    home = those[int(chosen(those, prefix))]
    home.in_flight = 1
    assert choose(those, [], NOW, prefix) is home
    home.in_flight = 20
    assert choose(those, [], NOW, prefix) is not home


def test_vllms_own_metrics() -> None:
    load = parse_load(METRICS, ours=5)
    assert load == Load(running=7, waiting=2, cache_use=0.5, ours=5)
    assert parse_load(b"", ours=0) == Load()
    assert parse_load(b"vllm:num_requests_running NaN\nvllm:num_requests_waiting x\n", ours=0) == Load()
