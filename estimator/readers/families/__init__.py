"""How each model type of transformers is laid out: rows of facts, and functions where facts do not do."""
