"""Kinds of raw data sets, one file each, and reading their files."""
