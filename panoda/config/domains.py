"""Sections of the domains: a data set, prepared."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from panoda.config.datasets import AnyDataset, CityDataset, FolderDataset
from panoda.config.section import MAX_ENLARGEMENT, Section, Size, check_name


class PrepareParams(Section):
    """How raw files become shards."""

    height: Size
    """Prepared image height in pixels."""
    width: Size
    """Prepared image width in pixels."""
    shard_images: Annotated[int, Field(ge=1)] = 256
    """Images in one Arrow shard."""
    codec: Literal["raw", "webp"] = "raw"
    """How shards store arrays: raw (fastest to read) or webp (lossless, a third to a half of the space)."""
    limit: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Split -> most images prepared of it, spread evenly over it; splits that are not named are whole."""


class DomainParams(Section):
    """One domain: where its images come from and how they are prepared."""

    folder: str
    """Where below data/prepared it goes: source, target, or more_sources/NAME; dvc.yaml reads it here."""
    dataset: Annotated[AnyDataset, Field(discriminator="kind")]
    """The raw data set."""
    prepare: PrepareParams
    """Sizes and shards."""

    @model_validator(mode="after")
    def _check(self) -> DomainParams:
        for split in self.dataset.splits:
            check_name(split)
        for what, named in (("prepare.limit", self.prepare.limit), ("dataset.unlabelled", self.unlabelled)):
            if unknown := sorted(set(named) - set(self.dataset.splits)):
                known = ", ".join(self.dataset.splits)
                raise ValueError(f"{what} names {', '.join(unknown)}, but the data set has {known}")
        if isinstance(self.dataset, CityDataset):
            camera, wanted = self.dataset.camera, self.prepare
            if max(wanted.height / camera.height, wanted.width / camera.width) > MAX_ENLARGEMENT:
                raise ValueError(
                    f"prepare wants {wanted.height} x {wanted.width} pixels (height x width) of the camera's "
                    f"{camera.height} x {camera.width}; at most {MAX_ENLARGEMENT:g} times as many make sense"
                )
        return self

    @property
    def unlabelled(self) -> list[str]:
        """Splits without labels, or whose labels are left out."""
        if isinstance(self.dataset, CityDataset):
            return [name for name, split in self.dataset.splits.items() if not split.labels]
        return list(
            self.dataset.splits if isinstance(self.dataset, FolderDataset) else self.dataset.unlabelled
        )


def prepared_folder(role: str) -> str:
    """Folder of a role below data/prepared.

    Example:
        >>> prepared_folder("source"), prepared_folder("synpass")
        ('source', 'more_sources/synpass')
    """
    return role if role in ("source", "target") else f"more_sources/{role}"


class DataParams(Section):
    """The domains: source, target, and any number of further labelled sources under names of their own."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, DomainParams]

    source: DomainParams
    """Labelled images, pinhole as a rule; splits train and val."""
    target: DomainParams
    """Panoramas; split train (labels never read), test (and optionally val) for evaluation."""

    @property
    def domains(self) -> dict[str, DomainParams]:
        """Role -> domain."""
        return {"source": self.source, "target": self.target, **(self.__pydantic_extra__ or {})}

    @model_validator(mode="after")
    def _check(self) -> DataParams:
        for role, domain in self.domains.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]*", role):
                raise ValueError(f"data.{role}: name a further source with lower-case letters, digits and _")
            if domain.folder != prepared_folder(role):
                raise ValueError(
                    f"data.{role}.folder is {domain.folder!r}; it must be {prepared_folder(role)!r}"
                )
            wanted = ("train", "test") if role == "target" else ("train", "val")
            if any(split not in domain.dataset.splits for split in wanted):
                raise ValueError(
                    f"data.{role}.dataset.splits has {', '.join(domain.dataset.splits) or 'none'}; the stages "
                    f"need {' and '.join(wanted)} of {'the target' if role == 'target' else 'a source'}"
                )
            bare = [split for split in wanted if split in domain.unlabelled]
            if role != "target" and bare:
                raise ValueError(
                    f"data.{role}.dataset has no labels for split {' and '.join(bare)}; a source is trained on "
                    "and measured with labels"
                )
        return self
