"""Alembic migrations of the study store; each version stands alone."""
