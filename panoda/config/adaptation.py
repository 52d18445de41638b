"""Sections of pseudo-labels and prototypes."""

from __future__ import annotations

from panoda.config.section import NonNegative, Probability, Scales, Section
from panoda.config.views import ViewsParams


class PseudoLabelParams(Section):
    """Pseudo-labels of the target train split."""

    scales: Scales = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    """Image scales whose logits are averaged."""
    flip: bool = True
    """Also average the mirrored image."""
    views: ViewsParams | None = None
    """Mix in perspective views; null = none."""
    source_colours: NonNegative = 0.0
    """Weight of each image in the colours that the model learned from, beside 1 for the image as it is; 0 = off."""
    quantile: Probability = 0.5
    """Per-class confidence quantile below which pixels are ignored."""
    cap: Probability = 0.9
    """Upper bound of every threshold."""
    prototype_sums: bool = False
    """Also sum features for stage prototypes, which then passes over the source alone (if its scales are the
    same)."""


class PrototypeParams(Section):
    """Multi-scale prototypes of both domains."""

    scales: Scales = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    """Image scales whose features are averaged."""
