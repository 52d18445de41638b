"""Published and imported weights."""
