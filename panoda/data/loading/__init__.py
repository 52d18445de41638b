"""Prepared splits: reading, augmenting, batching."""
