"""What every section of parameters is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=0)]
MIN_SIDE = 32
"""Fewest pixels of a side of what a model sees."""
MAX_ENLARGEMENT = 4.0
"""An image that would have to be enlarged more than this is refused: it holds no detail to learn."""
Size = Annotated[int, Field(ge=MIN_SIDE)]
Range = tuple[float, float]
LONGEST_NAME = 100


def _some(scales: tuple[float, ...]) -> tuple[float, ...]:
    if not scales:
        raise ValueError("expected at least one scale, such as [1.0]; found none")
    return scales


Scales = Annotated[tuple[Positive, ...], AfterValidator(_some)]


def check_name(name: str) -> str:
    """A name that becomes a file or folder and a name in MLflow; ValueError for what these cannot take."""
    wrong = sorted(set(name) & set('/\\:*?"<>|'))
    if wrong or not name.isprintable():
        what = " ".join(wrong) or "characters that cannot be printed"
        raise ValueError(f"{name!r} names files and folders and an entry in MLflow: leave {what} out")
    if not 0 < len(name) <= LONGEST_NAME or name.strip(" .") != name:
        raise ValueError(
            f"{name!r} names files and folders and an entry in MLflow: expected 1 to {LONGEST_NAME} "
            "characters, no blank or dot at either end"
        )
    return name


Name = Annotated[str, AfterValidator(check_name)]
SourceWeights = dict[str, Positive]


class Section(BaseModel):
    """Base of every section: frozen, no unknown keys, fields documented by docstrings."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class ConfigError(ValueError):
    """params.yaml or an override is wrong; the message says where and what was expected."""


def names_in(room: str) -> tuple[str, ...]:
    """What can be chosen by name in a room of the package: its files, such as models/decoders; nothing is imported."""
    folder = Path(__file__).resolve().parents[1] / room
    return tuple(sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")))
