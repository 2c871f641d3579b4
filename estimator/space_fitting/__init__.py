"""The largest architecture of a search space within limits: `largest.largest_config`."""
