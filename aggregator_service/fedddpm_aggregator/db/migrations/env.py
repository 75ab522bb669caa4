"""Alembic's entry: runs the packaged migrations over the connection that the database hands in."""

from alembic import context

from fedddpm_aggregator.db.tables import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
