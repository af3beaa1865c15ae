"""Run by Alembic: brings a database up to date, in the transaction of the connection that it is handed."""

from alembic import context

from server.ledger.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
