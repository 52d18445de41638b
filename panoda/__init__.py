"""panoda: from labelled pinhole images to segmentation of unlabelled 360-degree panoramas."""

__version__ = "0.1.0"
