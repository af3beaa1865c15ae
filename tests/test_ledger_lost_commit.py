"""A connection to the ledger breaks at a transaction's end: nobody knows whether it is committed; it counts once."""

import os
from contextlib import closing

import psycopg
from sqlalchemy import select

from server.ledger.database import Database, open_database, parse_url
from server.ledger.tables import decisions
from server.ledger.writer import Writer
from tests.support.ledger import POOL, decision, read_rollups
from tests.support.lost_answer import wire
from tests.support.postgresql import PostgreSql
from tests.support.processes import until


def test_a_commit_whose_answer_is_lost_counts_once(postgresql: PostgreSql) -> None:
    """The connection breaks when the decisions are there, and the gateway cannot know that they are."""
    direct = postgresql.make(f"lost_{os.getpid()}")
    with wire(postgresql.port) as between, closing(Writer(Database(parse_url(between.url(direct))), POOL)) as writer:
        writer.put(decision("before"))
        database = open_database(direct)
        until(lambda: written(database) == ["before"], 20, "the first is written")
        between.armed = True
        for row in (decision("again"), decision("lost"), decision("again", input_tokens=5)):
            writer.put(row)
        assert between.lost.wait(20)
        writer.put(decision("after"))
    read = read_rollups(database, 0)[1]
    assert sum(one.sums.requests for one in read) == 5
    assert sum(one.sums.input_tokens for one in read) == 4 * 11 + 5
    assert written(database) == ["after", "again", "before", "lost"]
    database.close()


def test_a_commit_that_never_came_is_made_again(postgresql: PostgreSql) -> None:
    url = postgresql.make(f"undone_{os.getpid()}")
    with closing(Writer(Database(parse_url(url)), POOL)) as writer:
        writer.put(decision("before"))
        database = open_database(url)
        until(lambda: written(database) == ["before"], 20, "the first is written")
        with postgresql.connect(f"undone_{os.getpid()}") as other, other.transaction():
            other.execute("LOCK TABLE rollups")
            writer.put(decision("cut off"))
            until(lambda: cut_off_who_waits(other) > 0, 20, "it waits for the lock")
    assert sum(one.sums.requests for one in read_rollups(database, 0)[1]) == 2
    assert written(database) == ["before", "cut off"]
    database.close()


def written(database: Database) -> list[str]:
    with database.read() as connection:
        return sorted(connection.execute(select(decisions.c.request_id)).scalars())


def cut_off_who_waits(other: "psycopg.Connection[tuple[object, ...]]") -> int:
    cut = other.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
        "AND datname = current_database()"
    )
    return len(cut.fetchall())
