"""Evaluation of models on prepared splits."""
