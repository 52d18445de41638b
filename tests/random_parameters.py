"""Random trees of parameters, drawn from the pydantic models themselves, and a run of every stage with them.

``python tests/random_parameters.py FIRST COUNT`` looks for faults among many seeds.
"""

from __future__ import annotations

import math
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
from PIL import Image
from pydantic import BaseModel, ValidationError
from small_data import blocks

from panoda.config import (
    CityDataset,
    ConfigError,
    DomainParams,
    Params,
    params_model,
    parse_params,
)
from panoda.config.methods import methods_of
from panoda.config.scenarios import load_scenario
from panoda.pipeline.runnable import check_runnable
from panoda.stages.adapt import adapt
from panoda.stages.evaluate import evaluate
from panoda.stages.preprocess import preprocess
from panoda.stages.pretrain import pretrain
from panoda.stages.prototypes import prototypes
from panoda.stages.pseudo_labels import pseudo_labels
from panoda.stages.rounds import rounds
from panoda.stages.warmup import warmup
from panoda.stages.weights import weights
from panoda.system.context import RunContext, resolve_precision

ROOT = Path(__file__).parents[1]
STEPS = 2
CHOICES: dict[str, tuple[Any, ...]] = {
    "encoder": ("trans4pass_nano", "mit_b0", "pvt_v2_b0", "segformer_b0", "vit:vit_tiny_patch16_224"),
    "label_space": ("cs19", "cs13", "cs13", "camvid11"),
    "iterations": tuple(range(STEPS + 1)),
    "swa": (None, {"start": 0.0, "every": 1}),
}
"""What only its meaning tells: names, and how long a test may take. Everything else has a type."""
ALONE = ("scenario", "path", "kind", "folder", "weights", "tracking", "looks", "seed", "device", "method")
"""Kept as they are: names of places, how a picture of the city looks, and where to compute."""


AUGMENTED = (
    ("pretrain", "augment"),
    *((stage, f"augment_{domain}") for domain in ("source", "target") for stage in ("warmup", "adapt")),
)
MODELS = (
    {"encoder": "vit:vit_tiny_patch16_224", "decoder": "setr_naive"},
    {"encoder": "vit:vit_tiny_patch16_224", "decoder": "upernet", "width": 32},
    {"encoder": "vit:vit_tiny_patch16_224", "decoder": "fcn", "blocks": [1], "width": 32},
    {"encoder": "pvt_v2_b0", "decoder": "segformer"},
    {"encoder": "mit_b0", "decoder": "dmlpv2"},
    {"encoder": "trans4pass_nano", "decoder": "upernet", "width": 32},
)
"""Pairs that go together, to begin with instead of the usual one."""


class Drawn:
    """Random values of a model's fields, near those of a base tree."""

    def __init__(self, seed: str) -> None:
        """A stream of its own for every seed; some change little, some most of the tree."""
        self.random = random.Random(seed)
        self.share = self.random.choice((0.02, 0.05, 0.1, 0.2, 0.4))

    def section(self, model: type[BaseModel], base: Mapping[str, Any], tries: int = 30) -> dict[str, Any]:
        """A tree of ``model``, valid by itself if a few tries find one."""
        tree: dict[str, Any] = dict(base)
        for _ in range(tries):
            tree = {
                **base,
                **{
                    name: self.field(name, field.annotation, field.metadata, base.get(name, field.default))
                    for name, field in model.model_fields.items()
                    if name not in ALONE
                },
            }
            try:
                model.model_validate(tree)
                break
            except ValidationError:
                continue
        return tree

    def field(self, name: str, annotation: Any, metadata: Any, base: Any) -> Any:
        """A value of a field: sections part by part, others changed now and then."""
        model = _section_of(annotation, base)
        if model is not None and isinstance(base, Mapping):
            absent = NoneType in get_args(annotation) and self.random.random() < self.share
            return None if absent else self.section(model, base)
        if isinstance(base, Mapping):
            inner = get_args(annotation)[-1] if get_args(annotation) else Any
            return {key: self.field(name, inner, (), value) for key, value in base.items()}
        if self.random.random() >= self.share:
            return base
        if name in CHOICES:
            return self.random.choice(CHOICES[name])
        return self.value(annotation, metadata, base)

    def value(self, annotation: Any, metadata: Any, base: Any) -> Any:
        """A value of a type."""
        kind, arguments = get_origin(annotation), get_args(annotation)
        if kind is Annotated:
            return self.value(arguments[0], arguments[1:], base)
        if kind in (Union, UnionType):
            return self.value(self.random.choice(arguments), metadata, base)
        if kind is Literal:
            return self.random.choice(arguments)
        if annotation is NoneType:
            return None
        if annotation is bool:
            return self.random.random() < 0.5
        if annotation in (int, float):
            return self.number(annotation, metadata, base)
        if kind is tuple:
            first = base[0] if base else None
            some = arguments[:1] * self.random.randint(1, 3) if arguments[-1] is Ellipsis else arguments
            drawn = [self.value(one, (), first) for one in some]
            return sorted(drawn) if arguments[-1] is not Ellipsis else drawn
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return self.section(annotation, {})
        return base

    def number(self, kind: type, metadata: Any, base: Any) -> float:
        """A bound, or something near the base's value, or anything between the bounds."""
        low, high, step = 0.0, math.inf, 1 if kind is int else 1e-3
        for bound in metadata:
            low = max(low, getattr(bound, "ge", low) or 0.0)
            low = max(low, bound.gt + step) if getattr(bound, "gt", None) is not None else low
            high = min(high, getattr(bound, "le", None) or high)
            high = min(high, bound.lt - step) if getattr(bound, "lt", None) is not None else high
        usual = base if isinstance(base, (int, float)) and base > 0 else 1
        top = min(high, max(low, 2 * usual + 2 * step))
        found = self.random.choice((low, top, usual / 2, usual + step, self.random.uniform(low, top)))
        if kind is int and base == 0:  # a size or a number of steps that is off
            found = self.random.choice((1, 2, 32, 40, 64))
        found = min(max(found, low), high)
        return round(found) if kind is int else found


def _section_of(annotation: Any, base: Any) -> type[BaseModel] | None:
    """The section that a field holds, that of the base's kind where several are possible."""
    found = [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
    inner = [each for part in get_args(annotation) if (each := _section_of(part, base))]
    if get_origin(annotation) in (dict, tuple, list):
        return None
    for model in (*found, *inner):
        name = "kind" if "kind" in model.model_fields else "method"
        tag = model.model_fields.get(name)
        if tag is None or isinstance(base, Mapping) and base.get(name) in get_args(tag.annotation):
            return model
    return None


@cache
def _scenario() -> Params:
    return load_scenario("city_small", folder=ROOT / "scenarios")


def smallest() -> dict[str, Any]:
    """The smallest city: a few small images, the stages of the demo, two steps of each."""
    tree = _scenario().model_dump(mode="json")
    for role, size in (("source", (48, 96)), ("target", (32, 128))):
        domain = tree["data"][role]
        domain["dataset"]["camera"] |= {"height": size[0], "width": size[1]}
        domain["prepare"] |= {"height": size[0], "width": size[1]}
        domain["prepare"]["limit"] = {"train": 3}
        for split in domain["dataset"]["splits"].values():
            split["images"] = 3
        domain["dataset"]["splits"] = {
            name: split
            for name, split in domain["dataset"]["splits"].items()
            if name != "val" or role == "source"
        }
        domain["dataset"]["images_per_world"] = 3
    for stage in ("pretrain", "warmup", "adapt"):
        tree[stage] |= {"iterations": STEPS, "batch_size": 2}
    for stage, name in AUGMENTED[:3]:
        tree[stage][name] |= {"crop_height": 32, "crop_width": 64}
    tree["pretrain"]["validate_every"] = 1
    if tree["adapt"]["method"] == "mpa":
        tree["adapt"]["mpa"]["refresh_every"] = 1
    for stage in ("pseudo_labels", "prototypes", "evaluate"):
        tree[stage]["scales"] = [1.0]
    tree["runtime"] |= {"log_every": 1, "inference_batch": 2}
    tree["evaluate"]["pictures"] = 1
    return tree


def draw(seed: int, attempt: int = 0) -> dict[str, Any]:
    """A tree of a seed; now and then with a further source of its own."""
    drawn, base = Drawn(f"{seed}/{attempt}"), smallest()
    if drawn.random.random() < 0.3:
        base["model"] |= drawn.random.choice(MODELS)
    if drawn.random.random() < 0.2:  # panoramas everywhere, uncut
        base["data"]["source"]["dataset"]["camera"]["projection"] = "erp"
        base["model"] |= MODELS[drawn.random.randrange(3)] | {"wrap": True}
        for stage, name in AUGMENTED:
            base[stage][name] |= {"crop_height": 0, "crop_width": 0, "scale": [1.0, 1.0], "yaw_roll": True}
    if drawn.random.random() < 0.4:
        base["adapt"]["method"] = drawn.random.choice(sorted(methods_of("adapt")))
        base = parse_params(base).model_dump(mode="json")
    if drawn.random.random() < 0.3:
        base["data"]["more"] = {
            **base["data"][drawn.random.choice(("source", "target"))],
            "folder": "more_sources/more",
        }
        labelled = {
            "train": {"images": 3, "seed": 9000, "labels": True},
            "val": {"images": 2, "seed": 9500, "labels": True},
        }
        base["data"]["more"]["dataset"] = {**base["data"]["more"]["dataset"], "splits": labelled}
        base["sources"]["more"] = 1.0
    tree = drawn.section(params_model(), base)
    if "more" in base["data"]:
        tree["data"] = {**tree["data"], "more": drawn.section(DomainParams, base["data"]["more"])}
        tree["sources"] = {**tree["sources"], "more": tree["sources"].get("more", 1.0)}
    return tree


def pictures(dataset: CityDataset, raw: Path) -> None:
    """What stage download leaves of a city, with coloured blocks in the place of streets."""
    size = (-(-dataset.camera.height // 8) * 8, -(-dataset.camera.width // 8) * 8)
    for split, wanted in dataset.splits.items():
        folder = raw / split
        names = [f"{number:05d}" for number in range(wanted.images)]
        for name in ("images", "labels"):
            (folder / name).mkdir(parents=True)
        for number, name in enumerate(names):
            cut = (slice(dataset.camera.height), slice(dataset.camera.width))
            image, label = (each[cut] for each in blocks(wanted.seed + number, size=size))
            Image.fromarray(image).save(folder / "images" / f"{name}.png")
            if wanted.labels:
                Image.fromarray(label).save(folder / "labels" / f"{name}.png")
        (folder / "meta.csv").write_text("\n".join(["id,look", *(f"{name},blocks" for name in names)]) + "\n")


def accepted(seed: int, attempts: int = 20) -> Params:
    """The first of a seed's trees that is not refused by what every flow does before its stage.

    Raises:
        ConfigError: all were; what the last one is refused for.
    """
    for attempt in range(attempts):
        try:
            params = parse_params(draw(seed, attempt))
            check_runnable(params)
            return params
        except ConfigError as error:
            refused = error
    raise refused


def run(params: Params, root: Path) -> None:
    """Every stage from preprocess to evaluate, as the flows call them."""
    runtime = params.runtime
    shared = RunContext(
        dtype=resolve_precision(runtime.precision, torch.device("cpu")),
        on_oom=runtime.on_oom,
        keep_checkpoints=runtime.keep_checkpoints,
        checkpoint_minutes=runtime.checkpoint_minutes,
        log_every=runtime.log_every,
        checkpoint_every=runtime.checkpoint_every,
        inference_batch=runtime.inference_batch,
        piece_images=runtime.piece_images,
        shard=runtime.shard == "fsdp",
    )

    def at(stage: str) -> RunContext:
        return replace(shared, state_dir=root / "state" / stage)

    prepared = root / "prepared"
    for role, domain in params.data.domains.items():
        raw = root / "raw" / role
        pictures(domain.dataset, raw)
        preprocess(
            role=role,
            raw=raw,
            out=prepared / domain.folder,
            domain=domain,
            label_space=params.label_space,
            context=at(f"preprocess-{role}"),
        )
    out = {
        name: root / name
        for name in ("weights", "pretrain", "warmup", "pseudo_labels", "prototypes", "adapt")
    }
    more: dict[str, Any] = {"sources": params.sources, "more_sources": prepared / "more_sources"}
    source = {"source_train": prepared / "source/train", **more}
    target = {"target_train": prepared / "target/train"}
    both: dict[str, Any] = {**source, **target}
    weights(weights=root, out=out["weights"], model=params.model, context=at("weights"))
    pretrain(
        **source,
        source_val=prepared / "source/val",
        out=out["pretrain"],
        model=params.model,
        params=params.pretrain,
        weights=out["weights"],
        seed=params.seed,
        context=at("pretrain"),
    )
    first, start, adapted = (out[name] / "model.safetensors" for name in ("pretrain", "warmup", "adapt"))
    warmup(
        checkpoint=first,
        **both,
        out=out["warmup"],
        params=params.warmup,
        seed=params.seed,
        context=at("warmup"),
    )
    pseudo_labels(
        checkpoint=start,
        **target,
        out=out["pseudo_labels"],
        params=params.pseudo_labels,
        context=at("pseudo_labels"),
    )
    made: dict[str, Any] = {"checkpoint": start, "pseudo_labels": out["pseudo_labels"]}
    prototypes(**made, **both, out=out["prototypes"], params=params.prototypes, context=at("prototypes"))
    adapt(
        **made,
        **both,
        prototypes=out["prototypes"],
        out=out["adapt"],
        params=params.adapt,
        seed=params.seed,
        context=at("adapt"),
    )
    rounds(
        adapted=adapted,
        **both,
        out=root / "rounds",
        rounds=params.rounds,
        pseudo_labels=params.pseudo_labels,
        prototypes=params.prototypes,
        adapt=params.adapt,
        seed=params.seed,
        context=at("rounds"),
    )
    evaluate(
        models={"source_only": first, "warmup": start, "round1": adapted},
        source_val=prepared / "source/val",
        **more,
        target_test=prepared / "target/test",
        out=root / "evaluate",
        params=params.evaluate,
        context=at("evaluate"),
    )


def differences(tree: Any, base: Any, where: str = "") -> list[str]:
    """What a tree changes of the smallest one."""
    if isinstance(tree, Mapping) and isinstance(base, Mapping):
        return [
            line
            for key in {**tree, **base}
            for line in differences(tree.get(key), base.get(key), f"{where}.{key}" if where else key)
        ]
    return [] if tree == base else [f"{where}={tree}"]


def search(first: int, count: int) -> None:
    """Print the seeds whose tree is accepted and does not run."""
    torch.set_num_threads(1)
    failed = 0
    for seed in range(first, first + count):
        begin = time.process_time()
        params = accepted(seed)
        try:
            with tempfile.TemporaryDirectory() as folder:
                run(params, Path(folder))
        except Exception as error:
            failed += 1
            print(f"{seed} FAILED: {type(error).__name__}: {error}")
            print("".join(traceback.format_tb(error.__traceback__)[-3:]))
            print("   ", "; ".join(differences(params.model_dump(mode="json"), smallest())))
        print(seed, f"{time.process_time() - begin:.1f} s", flush=True)
    print(f"{failed} of {count} failed")


if __name__ == "__main__":
    search(int(sys.argv[1]), int(sys.argv[2]))
