"""Migrations make exactly the tables that the code describes, from nothing and step by step."""

from __future__ import annotations

import ast
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import migrations
from nas.space import SearchSpace
from nas.spec import StudySpec
from nas.store import Store, upgrade_store
from nas.tables import SCHEMA_REVISION, Base

FOLDER = Path(migrations.__path__[0])


def scripts() -> ScriptDirectory:
    """The migrations as Alembic sees them."""
    return ScriptDirectory.from_config(Config(FOLDER / "alembic.ini"))


def differences(engine: sa.Engine) -> list[object]:
    """How a database differs from the tables that the code describes."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return list(compare_metadata(context, Base.metadata))


def run_alembic(engine: sa.Engine, direction: str, revision: str) -> None:
    """Alembic's own command, on one connection."""
    config = Config(FOLDER / "alembic.ini")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        getattr(command, direction)(config, revision)


def _sorted(described: object) -> object:
    """Constraints in an order of their own: SQLite lists them as they were written."""
    return sorted(described, key=str) if isinstance(described, list) else described


def test_new_store_has_the_tables_of_the_code(tmp_path: Path) -> None:
    """Columns, types, keys and indexes from the migrations are those of `nas.tables`."""
    Store.open(f"sqlite:///{tmp_path}/new.db").close()
    engine = sa.create_engine(f"sqlite:///{tmp_path}/new.db")
    assert differences(engine) == []
    assert set(sa.inspect(engine).get_table_names()) == {*Base.metadata.tables, "alembic_version"}
    engine.dispose()


def test_foreign_keys_of_a_new_store_are_those_of_the_code(tmp_path: Path) -> None:
    """SQLite comparisons skip some options, so the cascades are read back by name."""
    Store.open(f"sqlite:///{tmp_path}/new.db").close()
    made, described = sa.create_engine(f"sqlite:///{tmp_path}/new.db"), sa.create_engine("sqlite://")
    Base.metadata.create_all(described)
    for table in Base.metadata.tables:
        for read in ("get_foreign_keys", "get_unique_constraints", "get_indexes", "get_pk_constraint"):
            found, expected = (_sorted(getattr(sa.inspect(engine), read)(table)) for engine in (made, described))
            assert found == expected
    made.dispose()
    described.dispose()


def test_head_is_the_revision_that_the_code_names() -> None:
    """One line of history, ending at `SCHEMA_REVISION`."""
    assert scripts().get_heads() == [SCHEMA_REVISION]
    assert len(scripts().get_bases()) == 1


def test_every_migration_goes_down_and_up_again() -> None:
    """After each step down and the way back up, the tables are those of the code."""
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    run_alembic(engine, "upgrade", "head")
    for script in scripts().walk_revisions():
        assert isinstance(script.down_revision, str | None)
        run_alembic(engine, "downgrade", script.down_revision or "base")
        run_alembic(engine, "upgrade", "head")
        assert differences(engine) == []
    engine.dispose()


def test_store_at_the_base_is_brought_up_when_it_is_opened(tmp_path: Path) -> None:
    """A file that an interrupted first start left empty becomes a store; upgrading again changes nothing."""
    url = f"sqlite:///{tmp_path}/old.db"
    engine = sa.create_engine(url)
    run_alembic(engine, "upgrade", "head")
    run_alembic(engine, "downgrade", "base")
    engine.dispose()
    assert upgrade_store(url) == ("none", SCHEMA_REVISION)
    with Store.open(url) as store:
        study = store.create_study(StudySpec(space=SearchSpace.preset("decoder-nano")), "first")
        assert upgrade_store(url) == (SCHEMA_REVISION, SCHEMA_REVISION)
        assert store.find_study("first") == study


def test_migration_stands_alone() -> None:
    """No migration, nor their environment, imports application code: it would change under them."""
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"nas", "estimator", "api"}, path
