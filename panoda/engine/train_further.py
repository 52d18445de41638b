"""Training a given model further with a method: what stages warmup and adapt do."""

from __future__ import annotations

from pathlib import Path

import torch

from panoda.config import MethodParams
from panoda.data.loading.mixture import Mixture
from panoda.data.loading.prepared import PreparedSplit
from panoda.engine.distributed import result_directory
from panoda.engine.loop import LoopState
from panoda.engine.method import Setup, get_method
from panoda.engine.parallel import full_model, parallelise
from panoda.engine.seeds import stream_seed
from panoda.engine.training import prepared_size, run_training, save_training_result
from panoda.models.core.checkpoint import load_model, make_card
from panoda.system.context import RunContext


def train_further(
    checkpoint: Path,
    *,
    stage: str,
    source: PreparedSplit | Mixture | None,
    target: PreparedSplit,
    out: Path,
    params: MethodParams,
    seed: int,
    context: RunContext,
    pseudo_labels: Path | None = None,
    prototypes: Path | None = None,
) -> dict[str, float]:
    """Train the model in ``checkpoint`` with ``params.method`` and write ``out``; 0 iterations pass it through.

    The last weights are kept: no target label could select others.

    Args:
        checkpoint: The model to start from.
        stage: Name of the stage, for random streams, messages and the model's card.
        source: Labelled samples; None for methods that do without.
        target: Samples whose labels, if any, are never read.
        out: Result folder (replaced): model.safetensors, history.csv, metrics.json, and what the method saves.
        pseudo_labels: Folder of that stage, for methods that need it; ``prototypes`` likewise.

    Returns:
        The last step's losses and the method's own metrics.
    """
    space = (source or target).space
    model, old = load_model(checkpoint, space=space, device=context.device)
    state, task, own = LoopState(), None, stream_seed(seed, stage)
    if params.iterations:
        torch.manual_seed(own)
        task = get_method(params.method).task(
            Setup(stage, model, params, seed, context, source, target, pseudo_labels, prototypes)
        )
        parallelise(task, context)
        state = run_training(task, params, seed=own, context=context, description=stage)
        model = full_model(task.result(), context)
    card = make_card(
        model,
        label_space=space,
        stage=stage,
        seed=seed,
        params={**old.params, stage: params.model_dump(mode="json"), "prepared": prepared_size(target)},
    )
    last = next((row for row in reversed(state.history) if "loss/total" in row), {})
    metrics = {name: value for name, value in last.items() if name.startswith(("loss/", "teacher/"))}
    with result_directory(out, context) as folder:
        if task is not None:
            metrics |= task.metrics()
            if context.main:
                task.save(folder)
        return save_training_result(
            folder, model=model, card=card, state=state, metrics=metrics, split=target, context=context
        )
