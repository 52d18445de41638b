"""The training engine: loop, step, optimiser, resume points, several processes."""
