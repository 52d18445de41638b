"""Section of perspective views at prediction."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from panoda.config.section import Positive, Section


class ViewsParams(Section):
    """Perspective views of panoramas (full circles), predicted one by one and mixed with the whole panorama."""

    fov_deg: Annotated[float, Field(ge=10, le=150)] = 90.0
    """Field of view of each, across and down, in degrees."""
    pixels_per_degree: Positive | None = None
    """Pixels at the centre of a view; null = those of the panorama as it is predicted."""
    pitches: Annotated[tuple[Annotated[float, Field(ge=-90, le=90)], ...], Field(min_length=1)] = (0.0,)
    """Elevations in degrees, positive up: a ring of overlapping views for each."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the views in the logits; the rest is the whole panorama's. 1 = views alone, where they reach."""
