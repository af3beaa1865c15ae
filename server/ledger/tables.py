"""Every table of the ledger; the same on SQLite and PostgreSQL. `migrations/` makes them, step by step.

Times are Unix seconds, UTC. Arrays over arms are bytes, little-endian, in the order of the pool's arms.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
)

metadata = MetaData()

BigId = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by themselves only where the type is INTEGER."""

pools = Table(
    "pools",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sha256", Text, nullable=False, unique=True),
    Column("arms", JSON, nullable=False),  # names in order
    Column("prices", JSON, nullable=False),  # [[input, output], ...] USD per million tokens, by arm
    Column("mean_tokens", JSON, nullable=False),  # [[input, output], ...] by arm
    Column("probes", JSON, nullable=False),  # [name@revision or null, ...] by arm
    Column("policy", JSON, nullable=False),  # {"name": ..., knobs as configured}
    Column("created_at", Double, nullable=False),
)
"""One row per configuration seen: it says what the arrays of decisions mean."""

decisions = Table(
    "decisions",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("request_id", Text, nullable=False, unique=True),
    Column("response_id", Text),  # null where it is unknown, or the request id behind a prefix such as `chatcmpl-`
    Column("at", Double, nullable=False),  # when the whole request had been read
    Column("pool", Integer, ForeignKey("pools.id"), nullable=False),
    Column("arm", SmallInteger, nullable=False),  # index into the pool's arms
    Column("policy_arm", SmallInteger, nullable=False),  # what the policy itself would have chosen
    Column("policy", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("flags", Text, nullable=False),  # joined by commas
    Column("propensity", Float, nullable=False),  # probability with which this arm was drawn, given the request
    Column("allowed", BigInteger, nullable=False),  # bit i: arm i could serve it
    Column("success", LargeBinary, nullable=False),  # float32 (k,), NaN where unknown
    Column("cost", LargeBinary, nullable=False),  # float32 (k,), expected USD of one answer
    Column("percentile", Float),  # how unlike the training prompts, see `Prediction.percentile`
    Column("key", Text),  # name of the client's key
    Column("session", Text),  # hash of the conversation
    Column("code", SmallInteger, nullable=False),
    Column("attempts", SmallInteger, nullable=False),
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("cost_usd", Double),  # null where the upstream sent no usage
    Column("probe_usd", Double, nullable=False),  # what the probe models' prefill cost
    Column("routing_ms", Float, nullable=False),
    Column("total_ms", Float, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("prompt", Text),  # only with `ledger: {prompts: true}`
    Index("decisions_at", "at"),
    sqlite_autoincrement=True,
)
"""One row per request that was decided on, whatever came of it."""
with_response_id = decisions.c.response_id.is_not(None)
Index(
    "decisions_response_id",
    decisions.c.response_id,
    decisions.c.id,  # of equal ones the latest is looked for
    sqlite_where=with_response_id,
    postgresql_where=with_response_id,
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("source", Text, primary_key=True),
    Column("correct", Double, nullable=False),  # 0..1
    Column("at", Double, nullable=False),
    Column("pool", Integer, ForeignKey("pools.id"), nullable=False),  # this and the rest are copied from the decision,
    Column("arm", Text, nullable=False),  # so that whoever looks at many need not look there
    Column("success_probability", Double),
    Column("path", Text, nullable=False),
    Column("propensity", Float, nullable=False),
    Index("outcomes_at", "at"),
    Index("outcomes_arm_at", "arm", "at"),
)

rollups = Table(
    "rollups",
    metadata,
    Column("span_s", Integer, primary_key=True),  # 60, or 3600
    Column("bucket", BigInteger, primary_key=True),  # begins at this second, a multiple of the span
    Column("pool", Integer, ForeignKey("pools.id"), primary_key=True),
    Column("arm", SmallInteger, primary_key=True),
    Column("policy", Text, primary_key=True),
    Column("path", Text, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),  # codes other than 200
    Column("odd", BigInteger, nullable=False),  # with the flag out-of-distribution
    Column("scored", BigInteger, nullable=False),  # answered, with a success probability: what expected_correct is of
    Column("expected_correct", Double, nullable=False),
    Column("priced", BigInteger, nullable=False),  # answered, with usage: what the costs are of
    Column("cost_usd", Double, nullable=False),
    Column("probe_usd", Double, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("outcomes", BigInteger, nullable=False),
    Column("correct", Double, nullable=False),
)
"""Sums over decisions, written with them, so that a million need not be read to be summed up. What always using an arm
would have cost follows from them and the pool: `rollups.always_usd`."""

budgets = Table(
    "budgets",
    metadata,
    Column("key", Text, primary_key=True),
    Column("period", Text, primary_key=True),  # day, or month
    Column("start", BigInteger, primary_key=True),
    Column("spent_pico_usd", BigInteger, nullable=False),  # 1e-12 USD: whole numbers, whose sums are exact
    Column("reserved_pico_usd", BigInteger, nullable=False),
)
"""What keys have spent, and what their requests in flight may cost at the most."""

reservations = Table(
    "reservations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("key", Text, nullable=False),
    Column("pico_usd", BigInteger, nullable=False),
    Column("at", Double, nullable=False),
)
"""Requests in flight, each with its part of `reserved_pico_usd`; after a crash, those that nobody settled."""

sessions = Table(
    "sessions",
    metadata,
    Column("session", Text, primary_key=True),  # hash
    Column("arm", Text, nullable=False),
    Column("last", Text, nullable=False),  # the arm that answered last
    Column("replica", Text),  # of that arm
    Column("trial", Text),  # group, where two policies are compared
    Column("turn", Integer, nullable=False),  # how many answers it held when it was last asked for another
    Column("at", Double, nullable=False),
    Index("sessions_at", "at"),
)
"""On which arm a conversation is."""
