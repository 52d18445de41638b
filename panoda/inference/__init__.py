"""Prediction: several scales, windows, no seam; the confusion matrix."""
