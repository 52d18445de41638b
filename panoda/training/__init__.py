"""The training engine: context, optimiser, loop, resume points, validation."""
