"""The blocks that models are made of, as functions from sizes; the one place for shapes."""
