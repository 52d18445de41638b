"""Files, locks, memory, progress bars."""
