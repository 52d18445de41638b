"""The sections of the stages that train: the parameters of every method that a stage can run.

Each method's file in ``panoda/methods`` says its own, so this room knows the methods by name alone.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any

from pydantic import Field, create_model

from panoda.config.params import Params
from panoda.config.section import Section, names_in

log = logging.getLogger("panoda")

METHODS = names_in("methods")
"""Names of methods: the files of ``panoda/methods``."""
DEFAULTS = {"ssl": "none", "pretrain": "supervised", "warmup": "alignment", "adapt": "teacher_mix"}
"""Section of a training stage -> its method where none is named."""
_STAGES = {"ssl": "ssl_pretrain"}
"""Section -> the stage that it is of, where that has another name."""


@cache
def methods_of(section: str) -> Mapping[str, type[Section]]:
    """The parameters of every method of a stage, by name."""
    stage = _STAGES.get(section, section)
    methods = {name: importlib.import_module(f"panoda.methods.{name}").METHOD for name in METHODS}
    return {name: method.params for name, method in methods.items() if method.stage == stage}


def with_methods(tree: dict[str, Any]) -> dict[str, Any]:
    """A mapping in which every training stage names its method and has no keys that only its others know.

    So `adapt.method` alone changes the method: what both know stays, the rest takes its defaults.
    """
    tree = dict(tree)
    for stage, default in DEFAULTS.items():
        if isinstance(section := tree.get(stage), dict):
            methods = methods_of(stage)
            name = section.get("method", default)
            own = methods[name].model_fields if name in methods else section
            others = {key for params in methods.values() for key in params.model_fields}
            kept = {key: value for key, value in section.items() if key in own or key not in others}
            tree[stage] = {"method": name, **kept}
            if aside := [key for key in section if key not in tree[stage]]:
                log.info("%s.method is %s, which has no %s: left aside", stage, name, ", ".join(aside))
    return tree


@cache
def params_model() -> type[Params]:
    """``Params`` with the methods' own parameters, told apart by ``method``; imports every method."""
    fields: dict[str, Any] = {}
    for stage in DEFAULTS:
        kinds, field = tuple(methods_of(stage).values()), Params.model_fields[stage]
        kind: Any = reduce(or_, kinds)
        kind = Annotated[kind, Field(discriminator="method")] if len(kinds) > 1 else kind
        fields[stage] = (kind, Field(field.default, description=field.description))
    return create_model("Params", __base__=Params, __doc__=Params.__doc__, **fields)
