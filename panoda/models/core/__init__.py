"""The segmenter, its checkpoint, and what encoders and decoders share."""
