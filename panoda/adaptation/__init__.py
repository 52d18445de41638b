"""Domain adaptation: each file is one step or one pass and returns named values."""
