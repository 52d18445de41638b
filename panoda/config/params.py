"""The whole tree, and reading it from YAML."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from panoda.config.domains import DataParams
from panoda.config.pairs import check_circles, check_crops, check_devices, check_ssl
from panoda.config.running import (
    EvaluateParams,
    PrototypeParams,
    PseudoLabelParams,
    RuntimeParams,
    TrackingParams,
)
from panoda.config.section import Count, Name, Section, SourceWeights
from panoda.config.ssl import NoneParams, SslParams
from panoda.config.training import MethodParams, ModelParams
from panoda.labels import SPACES, get_label_space, is_space_file


class Params(Section):
    """The whole of params.yaml; ``panoda.config.methods.params_model`` knows the methods' own parameters."""

    scenario: Name
    """Name of this scenario."""
    seed: Count = 0
    """Seed of every random generator."""
    label_space: str
    """Classes that are trained and evaluated: a built-in label space, or the path of a YAML file."""
    rounds: Annotated[int, Field(ge=1)] = 1
    """Rounds of pseudo-labels and adaptation."""
    data: DataParams
    """The domains."""
    sources: SourceWeights = {"source": 1.0}
    """Labelled source -> its share of the training samples, relative to the others'."""
    model: ModelParams
    """The model."""
    ssl: NoneParams | SslParams = NoneParams()
    """Stage ssl_pretrain."""
    pretrain: MethodParams
    """Stage pretrain."""
    warmup: MethodParams
    """Stage warmup."""
    pseudo_labels: PseudoLabelParams = PseudoLabelParams()
    """Stage pseudo_labels."""
    prototypes: PrototypeParams = PrototypeParams()
    """Stage prototypes."""
    adapt: MethodParams
    """Stage adapt."""
    evaluate: EvaluateParams = EvaluateParams()
    """Stage evaluate."""
    runtime: RuntimeParams = RuntimeParams()
    """Device and precision."""
    tracking: TrackingParams = TrackingParams()
    """MLflow."""

    @model_validator(mode="after")
    def _check(self) -> Params:
        if is_space_file(self.label_space):
            get_label_space(self.label_space)
        elif self.label_space not in SPACES:
            raise ValueError(f"label_space {self.label_space!r} is unknown; known: {', '.join(SPACES)}")
        for check in (check_circles, check_crops, check_devices, check_ssl):
            check(self)
        labelled = set(self.data.domains) - {"target"}
        if set(self.sources) != labelled:
            raise ValueError(
                f"sources weighs {', '.join(sorted(self.sources)) or 'nothing'}; it must name every labelled "
                f"source of data and nothing else: {', '.join(sorted(labelled))}"
            )
        return self
