"""dvc.yaml, prefect.yaml and one file per flow, written from the table of stages.

``make pipeline`` (``python -m panoda.pipeline.write``) writes them; they are committed, and a test holds them equal.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from panoda.pipeline.table import STAGES, Stage

DVC_HEAD = """\
# The pipeline for DVC, written by `make pipeline` from panoda/pipeline/table.py; change it there.
# `dvc repro` runs what changed, `dvc repro STAGE` a stage and what it needs.
#
# - Every stage is a Prefect flow that also runs by hand (python -m flows.STAGE) without touching these outputs.
# - `params:` are exactly the sections a stage uses. `runtime` and `tracking` are left out on purpose: where a
#   stage computes and where it logs do not change its result.
# - Code is listed by room, and by file where a parameter chooses one: a change re-runs what uses it.
# - `watch`, which runs every time and is no flow, looks whether the files of the data sets are the same.
# - Training reads single splits: data/prepared/target/test is an input of `evaluate` alone.
"""
WATCH = """\
  watch:
    desc: a few bytes that differ when files of the data sets do (panoda/pipeline/watch.py)
    cmd: sh flows/python.sh -m panoda.pipeline.watch
    always_changed: true
    outs: [.panoda/watch]
"""
WATCHED = {
    "download": ".panoda/watch/${key}.json",
    "preprocess": ".panoda/watch/${key}.named.json",
    "ssl_pretrain": ".panoda/watch/ssl_pretrain.json",
}
"""Stage -> what it depends on of ``watch``."""
DVC_TAIL = """\
metrics:
  - outputs/evaluate/headlines.json
  - outputs/pseudo_labels/metrics.json

plots:
  - training loss:
      template: curves
      x: step
      y:
        outputs/pretrain/history.csv: loss/total
        outputs/warmup/history.csv: loss/total
        outputs/adapt/history.csv: loss/total
  - learning rate:
      template: curves
      x: step
      y:
        outputs/pretrain/history.csv: lr
        outputs/warmup/history.csv: lr
        outputs/adapt/history.csv: lr
  - mIoU on source val while pretraining:
      template: curves
      x: step
      y:
        outputs/pretrain/history.csv: miou/source_val
  - IoU per class:
      template: classes
      x: iou
      y:
        outputs/evaluate/per_class.csv: class
  - mIoU by latitude:
      template: models
      x: lat_deg
      y:
        outputs/evaluate/by_latitude.csv: miou
  - mIoU by viewing direction:
      template: models
      x: azimuth_deg
      y:
        outputs/evaluate/by_azimuth.csv: miou
"""
PREFECT_HEAD = """\
# Every flow as a deployment on the work pool `local` (processes on this machine); written by `make pipeline`.
# `make server` creates the pool, the concurrency limit `gpu` and these deployments; then, for example,
#   prefect deployment run 'adapt/local' --param 'job={"overrides": ["adapt.iterations=10"]}'
# Results go to folders below runs/, as with python -m flows.STAGE.
name: panoda
prefect-version: 3.8.8

build:
  - prefect.deployments.steps.run_shell_script:
      id: root
      script: pwd
push: null
pull:
  - prefect.deployments.steps.set_working_directory:
      directory: "{{ root.stdout }}"

definitions:
  pool: &pool
    name: local

deployments:
"""
CLASSIFY = """\
  - name: local
    entrypoint: flows/classify.py:classify
    work_pool: *pool
    parameters: {params: {action: finetune, data: city, encoder: vit_tiny_patch16_224, random: true}}
"""
"""No stage: ``panoda classify`` as a deployment."""
FLOW = '''\
"""Stage {name}: {description}.

Written by ``make pipeline``.
"""

from flows.command import main
from flows.factory import stage_flow

{name} = stage_flow("{name}")

if __name__ == "__main__":
    main({name})
'''


def written_files() -> dict[Path, str]:
    """Path relative to the project root -> content, for every file that follows from the table."""
    stages = STAGES.values()
    dvc = f"{DVC_HEAD}\nstages:\n{WATCH}{''.join(map(_dvc_stage, stages))}\n{DVC_TAIL}"
    prefect = PREFECT_HEAD + "".join(map(_deployment, stages)) + CLASSIFY
    flows = {Path(f"flows/{s.name}.py"): FLOW.format(name=s.name, description=s.description) for s in stages}
    return {Path("dvc.yaml"): dvc, Path("prefect.yaml"): prefect, **flows}


def _dvc_stage(stage: Stage) -> str:
    role = " --role ${key}" if stage.per_role else ""
    watched = [WATCHED[stage.name]] if stage.name in WATCHED else []
    inputs = [*watched, *_in_dvc(stage.inputs.values())]
    if stage.name == "report":  # it is made of every output
        inputs = [stage.out for stage in STAGES.values() if stage.out.startswith("outputs/")]
    lines = [
        f"desc: {stage.description}",
        f"cmd: sh flows/python.sh -m flows.{stage.name}{role} --pipeline",
        f"params: [{', '.join(map(_quoted, _in_dvc(stage.sections)))}]",
        "deps:",
        *(f"  - {path}" for path in (*inputs, *stage.code, f"panoda/stages/{stage.name}.py")),
        f"outs: [{_quoted(_in_dvc([stage.out])[0])}]",
    ]
    head, indent = f"  {stage.name}:\n", " " * 4
    if stage.per_role:
        head, indent = f"{head}    foreach: ${{data}}\n    do:\n", " " * 6
    return head + "".join(f"{indent}{line}\n" for line in lines)


def _in_dvc(texts: Iterable[str]) -> list[str]:
    return [text.format(role="${key}", folder="${item.folder}") for text in texts]


def _quoted(item: str) -> str:
    """An item of a list in brackets: braces would end it."""
    return f'"{item}"' if "{" in item else item


def _deployment(stage: Stage) -> str:
    role = "    parameters: {role: source}\n" if stage.per_role else ""
    entry = f"flows/{stage.name}.py:{stage.name}"
    return f"  - name: local\n    entrypoint: {entry}\n    work_pool: *pool\n{role}"


def main() -> None:
    """Write the files into the current folder, which must be a checkout."""
    for path, content in written_files().items():
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
