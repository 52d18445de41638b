"""The sections of the stages that train: the parameters of every method that a stage can run.

Each method's file in ``panoda/methods`` says its own, so this room knows the methods by name alone.
"""

from __future__ import annotations

import importlib
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any

from pydantic import Field, create_model

from panoda.config.params import Params
from panoda.config.section import names_in

METHODS = names_in("methods")
"""Names of methods: the files of ``panoda/methods``."""
DEFAULTS = {"pretrain": "supervised", "warmup": "alignment", "adapt": "mpa"}
"""Section of a training stage -> its method where none is named."""


@cache
def method_params(stage: str) -> Any:
    """The type of a stage's section: the parameters of its methods, told apart by ``method``."""
    methods = [importlib.import_module(f"panoda.methods.{name}").METHOD for name in METHODS]
    kinds = tuple(method.params for method in methods if method.stage == stage)
    kind = reduce(or_, kinds)
    return Annotated[kind, Field(discriminator="method")] if len(kinds) > 1 else kind


@cache
def params_model() -> type[Params]:
    """``Params`` with the methods' own parameters; imports every method."""
    fields: dict[str, Any] = {
        stage: (method_params(stage), Field(description=Params.model_fields[stage].description))
        for stage in DEFAULTS
    }
    return create_model("Params", __base__=Params, __doc__=Params.__doc__, **fields)
