"""Decoders, one file each."""
