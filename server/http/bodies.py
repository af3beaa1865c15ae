"""How many bytes of request bodies are held at a time."""

from server.errors import BodiesError

SMALL_BYTES = 2**16
"""Smaller bodies are not counted: `limits.in_flight` bounds them."""


class Bodies:
    """
    Args:
        limit_mb: of all together.
    """

    def __init__(self, limit_mb: float) -> None:
        self.limit_mb = limit_mb
        self.held = 0
        """Bytes."""


class Held:
    """What one request holds of them."""

    __slots__ = ("_bodies", "_size")

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._size = 0

    def expect(self, size: int) -> None:
        """The request's body will have so many bytes. They do not count until they are here, or a client could take
        all the room by announcing bodies.

        Raises:
            BodiesError: there is no room for them.
        """
        if size > SMALL_BYTES and self._bodies.held + size - self._size > self._bodies.limit_mb * 2**20:
            raise BodiesError(self._bodies.limit_mb)

    def grow(self, size: int) -> None:
        """The request's body has so many bytes now.

        Raises:
            BodiesError: there is no room for them.
        """
        self.expect(size)
        if size > max(SMALL_BYTES, self._size):
            self._bodies.held += size - self._size
            self._size = size

    def release(self) -> None:
        """Nothing of it is held any more; a second call changes nothing."""
        self._bodies.held -= self._size
        self._size = 0
