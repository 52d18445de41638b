"""Raw files from hosts and archives."""
