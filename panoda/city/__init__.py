"""The embedded city: a procedural street world, rendered by ray casting with labels from the same rays."""
