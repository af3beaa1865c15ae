"""The sections of a configuration file that say how requests are taken: where, whose, how many. pydantic alone."""

from pydantic import Field

from server.sections.base import Section

MAX_WORKERS = 64


class Server(Section):
    """All but `drain_s` is read when the gateway starts: a reload does not change it."""

    host: str = "127.0.0.1"
    """Address to listen at."""
    port: int = Field(default=8000, ge=0, le=65535)
    """0: any free one, which the log names."""
    public: bool = False
    """Whether `host` may be an address that other machines reach: whoever reaches it may ask."""
    workers: int = Field(default=1, ge=1, le=MAX_WORKERS)
    """Processes that answer; with more than one, a parent of theirs holds the port and the one engine."""
    drain_s: float = Field(default=30, ge=0)
    """After SIGTERM, open requests have so long to end."""


class Keys(Section):
    """Users' keys, which everything but /health, /ready, /metrics, /dashboard and /admin asks for from now on."""

    file: str
    """Path of the file that `pika keys` writes, relative to this one's folder; looked at every second."""


class Admin(Section):
    """Opens /admin to whoever sends this key as `authorization: Bearer KEY`."""

    key_env: str
    """Name of the environment variable that holds the key, of 16 characters at least."""


class Limits(Section):
    """Bounds on what one gateway process takes on, each worker by itself; times in seconds."""

    connections: int = Field(default=10_000, gt=0)
    """Clients' open connections, idle ones included; further ones are answered with 503 and closed."""
    in_flight: int = Field(default=1000, gt=0)
    """Requests at once; further ones get 503 with Retry-After."""
    head_kb: float = Field(default=32, gt=0)
    """Request line and headers."""
    head_s: float = Field(default=10, gt=0)
    """From a request's first byte to the end of its headers."""
    body_mb: float = Field(default=10, gt=0)
    """Of one request, as it comes and unpacked."""
    bodies_mb: float = Field(default=500, gt=0)
    """Of all requests in flight together, bodies of up to 64 kB left out; a body is held until its answer begins, and
    with `ledger: {prompts: true}` until it ends."""
    body_s: float = Field(default=120, gt=0)
    """From the end of a request's head to the end of its body."""
    connect_s: float = Field(default=2, gt=0)
    """To an upstream."""
    first_byte_s: float = Field(default=120, gt=0)
    """From the request sent upstream to a stream's first byte; an answer that is no stream has `total_s`."""
    between_chunks_s: float = Field(default=60, gt=0)
    """Of a stream."""
    total_s: float = Field(default=900, gt=0)
    """From a request's whole body to the end of its answer."""
