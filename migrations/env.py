"""Runs migrations on the connection it is given, or on the database of `alembic -x url=...`."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context


def run(connection: sa.Connection) -> None:
    context.configure(connection=connection, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with sa.create_engine(context.get_x_argument(as_dictionary=True)["url"]).begin() as own:
        run(own)
