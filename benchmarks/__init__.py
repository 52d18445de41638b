"""Measurements that docs/ quotes; none of them is a test."""
