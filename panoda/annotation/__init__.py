"""Predictions to annotation tools, and corrected labels back."""
