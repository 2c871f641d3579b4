"""How each figure of an estimate is derived."""
