"""The periods that the page shows, and how finely."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Period:
    """Ends now."""

    name: str
    seconds: int
    span_s: int
    """Of the ledger's sums that it is added up from."""
    bucket_s: int
    """Of a chart; a multiple of the span."""

    coarse_s: int
    """Of a chart that needs many requests for each point."""

    def buckets(self, now: float) -> list[int]:
        """Beginnings of a chart's buckets, Unix seconds; the last one holds `now`."""
        return _buckets(now, self.seconds, self.bucket_s)

    def coarse_buckets(self, now: float) -> list[int]:
        """The same, coarser."""
        return _buckets(now, self.seconds, self.coarse_s)

    def since(self, now: float) -> int:
        """Where the first bucket begins, so that figures and charts count the same requests."""
        return self.buckets(now)[0]


def _buckets(now: float, seconds: int, size_s: int) -> list[int]:
    last = int(now // size_s) * size_s
    return list(range(last - seconds + size_s, last + 1, size_s))


HOUR_S = 3600
PERIODS = {
    one.name: one
    for one in (
        Period("1h", HOUR_S, 60, 60, 180),
        Period("24h", 24 * HOUR_S, 60, 1800, HOUR_S),
        Period("7d", 7 * 24 * HOUR_S, HOUR_S, 3 * HOUR_S, 7 * HOUR_S),
        Period("30d", 30 * 24 * HOUR_S, HOUR_S, 12 * HOUR_S, 30 * HOUR_S),
    )
}
