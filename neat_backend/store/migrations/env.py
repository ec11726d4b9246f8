"""What Alembic runs. The connection comes from `Database.migrate`, with the transaction and the lock.

To write the next migration: change schema.py, add a file to versions/, and run tests/store, which
compare the tables that the migrations make with schema.py on both databases.
"""

from alembic import context

from neat_backend.store.schema import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("Migrations run through neat_backend.store.database.Database.migrate")
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
