"""Text that would be run, or turn a line around, if a page did not take it for text."""

from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from server.ledger.database import Database
from server.ledger.tables import decisions, outcomes, pools, rollups
from tests.support.dashboard import ARMS

if TYPE_CHECKING:
    from playwright.sync_api import Page

HOSTILE = "<img src=x onerror=hacked=1><script>hacked=1</script>'\"; DROP TABLE decisions; --\x07\u202egnirts\ufeff"


def spoil(database: Database) -> None:
    """Put hostile text into every field of text, the ledger's largest ones included."""
    long = HOSTILE + "A" * 1_000_000
    with database.write() as connection:
        newest = connection.execute(select(decisions).order_by(decisions.c.id.desc()).limit(1)).one()
        fields = ("request_id", "response_id", "policy", "path", "key", "prompt")
        values = {**dict.fromkeys(fields, long), "flags": HOSTILE + "," * 1000 + "flag," * 200_000}
        connection.execute(decisions.update().where(decisions.c.id == newest.id).values(**values))
        connection.execute(outcomes.update().values(source=HOSTILE))
        words = dict.fromkeys(("request_id", "source", "arm", "path"), long)
        numbers = {"correct": 1, "at": newest.at, "pool": newest.pool, "success_probability": 0.5, "propensity": 1}
        connection.execute(outcomes.insert().values(**words, **numbers))
        for span_s in (60, 3600):
            latest = select(func.max(rollups.c.bucket)).where(rollups.c.span_s == span_s).scalar_subquery()
            of_it = (rollups.c.span_s == span_s, rollups.c.bucket == latest)
            connection.execute(rollups.update().where(*of_it).values(policy=long, path=long + rollups.c.path))
        connection.execute(pools.update().values(arms=[long, *ARMS[1:]]))


def hostile(value: Any, of: str = "") -> Any:
    """With every text in it hostile, and still different from the others; names of arms and knobs too."""
    if isinstance(value, dict):
        named = of in ("arms", "mix", "knobs")
        return {hostile(key) if named else key: hostile(one, key) for key, one in value.items()}
    if isinstance(value, list):
        return [hostile(one) for one in value]
    return HOSTILE + value if isinstance(value, str) else value


def nothing_ran(page: "Page") -> None:
    """Of what was hostile."""
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.locator("img[src=x], main script").count() == 0
