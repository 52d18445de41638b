"""The sets that stage evaluate measures on: val of every source, and target test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panoda.data.loading.prepared import PreparedSplit, check_same_space
from panoda.inference.pictures import picture_indices
from panoda.labels import LabelSpace

SETS = ("source_val", "target_test")
"""The sets that every report speaks of, whether they are there or not."""
MOST_GROUPS = 40
"""A set with more groups than this is not cut by them: such groups are scenes, not conditions."""


@dataclass(frozen=True)
class EvaluationSet:
    """One evaluation set: its images, its classes, and why it has no scores if it has none.

    Attributes:
        name: source_val, target_test or ROLE_val.
        split: The images.
        space: Label space of the scores.
        shared: Classes that labels of the sources can take.
        pictures: Indices of the images kept for the report.
        in_source_val: Images that the val split of a source has as well; 0 for those themselves.
    """

    name: str
    split: PreparedSplit
    space: LabelSpace
    shared: tuple[int, ...]
    pictures: tuple[int, ...]
    in_source_val: int

    @property
    def labelled(self) -> bool:
        """Whether there are labels to score against."""
        return bool(self.split.has_labels)

    @property
    def groups(self) -> list[str] | None:
        """Group of every image; None when there are fewer than two, or too many to compare."""
        groups = [str(group) for group in self.split.index["group"]]
        return groups if 2 <= len(set(groups)) <= MOST_GROUPS else None

    def describe(self) -> dict[str, Any]:
        """What the report says about the set."""
        split, sphere = self.split, None
        if split.projection == "erp":  # the part of it that panoramas show
            keys = ("fov_x_deg", "lat_top_deg", "lat_bottom_deg")
            sphere = {key: float(getattr(split, key)) for key in keys}
        note = "" if self.labelled else f"the {self.name.replace('_', ' ')} images have no labels"
        return {
            "images": len(self.split),
            "images_in_source_val": self.in_source_val,
            "labelled": self.labelled,
            "projection": self.split.projection,
            "full_circle": bool(self.split.full_circle),
            "sphere": sphere,
            "label_space": self.space.name,
            "raw_label_space": self.split.raw_label_space if self.labelled else None,
            "class_names": self.space.names,
            "palette": self.space.palette,
            "remap": self.split.remap,
            "shared_classes": [self.space.names[i] for i in self.shared],
            "digest": self.split.digest,
            "note": note,
        }


def open_sets(
    sources: Mapping[str, PreparedSplit], target_test: Path | None, pictures: int
) -> list[EvaluationSet]:
    """Open the sets.

    Raises:
        ValueError: labelled sets in different label spaces.
    """
    splits = {f"{role}_val": split for role, split in sources.items()}
    if target_test is not None:
        splits["target_test"] = PreparedSplit(target_test)
    source = sources["source"]
    space = source.space
    learned = [
        set(split.space.names) - set((split.remap or {}).get("empty", ())) for split in sources.values()
    ]
    shared = tuple(i for i, name in enumerate(space.names) if any(name in names for names in learned))
    known = {sha for split in sources.values() for sha in split.index["image_sha256"]}
    sets = []
    for name, split in splits.items():
        if split.has_labels:
            check_same_space(split, source)
        fixed = tuple(picture_indices(len(split), pictures)) if pictures else ()
        also = int(split.index["image_sha256"].isin(known).sum()) if name == "target_test" else 0
        sets.append(EvaluationSet(name, split, space, shared, fixed, also))
    return sets
