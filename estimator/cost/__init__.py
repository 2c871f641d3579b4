"""Energy, carbon and money."""
