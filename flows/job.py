"""What a flow is asked for: where its parameters and inputs come from, where its result goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from panoda.config import ConfigError, Params, Section, load_params, parse_params
from panoda.pipeline import runs
from panoda.pipeline.table import Stage


class Job(Section):
    """Where a flow takes its parameters and inputs from, and where its result goes."""

    pipeline: bool = False
    """Write the DVC output of the stage instead of a run folder; what dvc.yaml does."""
    params: str = "params.yaml"
    """File with the sections that are not given."""
    overrides: list[str] = Field(default_factory=list)
    """``section.key=value`` changes to that file."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Input name -> path, instead of the pipeline's."""
    out: str | None = None
    """Result folder; null makes runs/<stage>-<time>-<id>."""

    def effective(self, sections: Mapping[str, Any]) -> Params:
        """All parameters; ``sections`` that are not None take the place of the file's."""
        base = load_params(Path(self.params), self.overrides)
        given = {
            key: value.model_dump(mode="json") if isinstance(value, Section) else value
            for key, value in sections.items()
            if value is not None
        }
        return parse_params({**base.model_dump(mode="json"), **given}, "flow parameters") if given else base

    def input_paths(self, stage: Stage, role: str | None, params: Params) -> dict[str, Path]:
        """Input name -> path; ConfigError for a name that the stage does not have."""
        paths = stage.input_paths(role, params)
        unknown = set(self.inputs) - set(paths)
        if unknown:
            raise ConfigError(
                f"--input {', '.join(sorted(unknown))}: stage {stage.name} has no such input; "
                f"it has {', '.join(paths) or 'none'}"
            )
        for name, given in self.inputs.items():
            path = Path(given).expanduser()
            # A run folder stands for the model in it.
            is_model = paths[name].suffix == ".safetensors"
            paths[name] = path / paths[name].name if is_model and path.is_dir() else path
        return paths

    def out_path(self, stage: Stage, role: str | None) -> Path:
        """The result folder; ConfigError where a result by hand has no place."""
        if self.pipeline:
            if self.inputs or self.overrides or self.out or self.params != "params.yaml":
                raise ConfigError(
                    "--pipeline writes DVC's output, so it takes params.yaml and the pipeline's inputs only"
                )
            return stage.out_path(role)
        if self.out is None:
            return runs.new_run_folder(stage.folder_name(role))
        out = Path(self.out).expanduser()
        root = Path.cwd()
        for kept in ("data", "outputs", "reports", "panoda", "flows", ".git", ".dvc"):
            found = out.resolve()
            if found in (root, *root.parents) or (root / kept).resolve() in (found, *found.parents):
                raise ConfigError(f"--out {out}: not a place for a run by hand; use a folder below runs/")
        used = out.is_dir() and any(out.iterdir()) and not (out / runs.RECORD).is_file()
        if used or out.exists() and not out.is_dir():
            raise ConfigError(f"--out {out}: exists and is no run folder; choose an empty or new one")
        return out


HERE = Job()
"""params.yaml, the pipeline's inputs, a new run folder."""
