"""params.yaml -> one frozen pydantic tree; the only reader of YAML.

Unknown keys are rejected everywhere. The docstring under a field is its documentation
(``panoda params`` prints it); angles end in ``_deg``, sizes are pixels, height before width.
"""

from __future__ import annotations

from panoda.config.datasets import (
    AnyDataset,
    CameraParams,
    CityDataset,
    CitySplit,
    DeclaredDataset,
    FolderDataset,
    LookParams,
    Projection,
    Stanford2D3DDataset,
    Structured3DDataset,
)
from panoda.config.domains import DataParams, DomainParams, PrepareParams, prepared_folder
from panoda.config.methods import params_model
from panoda.config.params import Params
from panoda.config.problems import problems, sections_in
from panoda.config.reading import load_params, parse_params, read_tree
from panoda.config.running import (
    ClusterParams,
    EvaluateParams,
    PrototypeParams,
    PseudoLabelParams,
    RuntimeParams,
    SlidingParams,
    TrackingParams,
    ViewsParams,
)
from panoda.config.section import (
    ConfigError,
    Count,
    NonNegative,
    Positive,
    Probability,
    Range,
    Scales,
    Section,
    Size,
    SourceWeights,
)
from panoda.config.ssl import NoneParams, SslOptimParams, SslParams
from panoda.config.training import (
    DECODERS,
    AugmentParams,
    ClassWeightParams,
    MethodParams,
    ModelParams,
    OptimParams,
    SourceTrainingParams,
)
