"""params.yaml -> one frozen pydantic tree; the only reader of YAML.

Unknown keys are rejected everywhere. The docstring under a field is its documentation
(``panoda params`` prints it); angles end in ``_deg``, sizes are pixels, height before width.
"""

from __future__ import annotations

from panoda.config.adaptation import AdaptParams, MPAParams, PrototypeParams, PseudoLabelParams, TeacherParams
from panoda.config.datasets import (
    AnyDataset,
    CameraParams,
    CamVidDataset,
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
from panoda.config.params import Params, load_params, parse_params, read_tree
from panoda.config.problems import problems, sections_in
from panoda.config.running import ClusterParams, EvaluateParams, RuntimeParams, SlidingParams, TrackingParams
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
from panoda.config.training import (
    DECODERS,
    AugmentParams,
    ClassWeightParams,
    ModelParams,
    OhemParams,
    OptimParams,
    PretrainParams,
    SwaParams,
    WarmupParams,
    check_accumulate,
)

__all__ = [
    "DECODERS",
    "AdaptParams",
    "AnyDataset",
    "AugmentParams",
    "CamVidDataset",
    "CameraParams",
    "CityDataset",
    "CitySplit",
    "ClassWeightParams",
    "ClusterParams",
    "ConfigError",
    "Count",
    "DataParams",
    "DeclaredDataset",
    "DomainParams",
    "EvaluateParams",
    "FolderDataset",
    "LookParams",
    "MPAParams",
    "ModelParams",
    "NonNegative",
    "OhemParams",
    "OptimParams",
    "Params",
    "Positive",
    "PrepareParams",
    "PretrainParams",
    "Probability",
    "Projection",
    "PrototypeParams",
    "PseudoLabelParams",
    "Range",
    "Scales",
    "RuntimeParams",
    "Section",
    "Size",
    "SlidingParams",
    "SourceWeights",
    "Stanford2D3DDataset",
    "Structured3DDataset",
    "SwaParams",
    "TeacherParams",
    "TrackingParams",
    "WarmupParams",
    "check_accumulate",
    "load_params",
    "parse_params",
    "prepared_folder",
    "problems",
    "read_tree",
    "sections_in",
]
