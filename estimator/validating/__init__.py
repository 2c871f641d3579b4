"""The estimator against reference data."""
