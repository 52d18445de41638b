"""What is wrong with a mapping, said in terms of the file."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from panoda.config.domains import DataParams, DomainParams


def problems(model: type[BaseModel], tree: Any, error: ValidationError) -> list[str]:
    """One line for each problem of a mapping: where in the file, what was found, what was expected."""
    return [_problem(model, tree, found["loc"], found) for found in error.errors()]


def _problem(model: type[BaseModel], tree: Any, loc: tuple[int | str, ...], error: Mapping[str, Any]) -> str:
    kind, said = error["type"], error["msg"].removeprefix("Value error, ")
    where = ".".join(str(part) for part in _in_file(tree, loc, missing=kind == "missing")) or "(top)"
    if kind == "extra_forbidden":
        known = [name for part in _sections_at(model, loc[:-1]) for name in part.model_fields]
        near = get_close_matches(str(loc[-1]), known, n=1)
        said = f"unknown; did you mean {near[0]}?" if near else f"unknown; expected {', '.join(known)}"
    told = kind in ("missing", "value_error", "union_tag_invalid")
    return f"{where}: {said}" + ("" if told else f" (found {reprlib.repr(error['input'])})")


def _in_file(tree: Any, loc: tuple[int | str, ...], *, missing: bool) -> Iterator[int | str]:
    """A location without the names of types that pydantic puts between the keys of the file."""
    for number, part in enumerate(loc):
        if isinstance(tree, Mapping) and part in tree:
            tree = tree[part]
        elif isinstance(tree, list) and isinstance(part, int):
            tree = tree[part]
        elif not (missing and number == len(loc) - 1):
            continue
        yield part


def _sections_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[type[BaseModel]]:
    """The sections that a location may lead to: several for a union that was not decided."""
    found = [model]
    for part in loc:
        deeper = [
            inner
            for outer in found
            if part in outer.model_fields
            for inner in sections_in(outer.model_fields[str(part)].annotation)
        ]
        chosen = [each for each in found if part in _tags(each)]
        # A key of a dictionary of sections leads to one of them; so does the name of a further source.
        found = deeper or chosen or ([DomainParams] if DataParams in found else found)
    return found


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    fields = model.model_fields
    return next((get_args(fields[tag].annotation) for tag in ("kind", "method") if tag in fields), ())


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field's type names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from sections_in(argument)
