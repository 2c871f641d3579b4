"""The search: proposes transformers, measures and scores them, keeps the Pareto front in a study store."""
