"""Raw files to index and shards."""
