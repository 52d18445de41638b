"""Data sets, prepared shards, transforms and loaders."""
