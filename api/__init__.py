"""A FastAPI service over the study store."""
