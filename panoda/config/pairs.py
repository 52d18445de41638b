"""Settings of different sections that do not go together; said before any stage has run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from panoda.config.domains import PrepareParams
from panoda.config.ssl import SslParams
from panoda.config.training import AugmentParams, MethodParams

if TYPE_CHECKING:
    from panoda.config.params import Params


def trained_stages(params: Params) -> dict[str, MethodParams]:
    """Name -> section of the stages that take steps."""
    found: dict[str, MethodParams] = {"ssl": params.ssl} if isinstance(params.ssl, SslParams) else {}
    found |= {
        "pretrain": params.pretrain,
        "warmup": params.warmup,
        "adapt": params.adapt,
    }
    return {name: section for name, section in found.items() if section.iterations}


def augmentations(params: Params) -> Iterator[tuple[str, AugmentParams, list[PrepareParams]]]:
    """Of every stage that takes steps: dotted name, augmentation, and how what it augments is prepared."""
    sources = [domain.prepare for role, domain in params.data.domains.items() if role != "target"]
    for name, section in trained_stages(params).items():
        for key, value in section:
            if isinstance(value, AugmentParams):
                yield f"{name}.{key}", value, [params.data.target.prepare] if "target" in key else sources


def check_crops(params: Params) -> None:
    """ValueError when samples of one batch would differ in size."""
    for name, augment, prepared in augmentations(params):
        sides: tuple[Literal["height", "width"], ...] = ("height", "width")
        for side in sides:
            sizes = sorted({getattr(one, side) for one in prepared})
            if len(sizes) > 1 and not getattr(augment, f"crop_{side}"):
                raise ValueError(
                    f"{name}.crop_{side} is 0 (the whole image), but the sources are prepared at {side}s of "
                    f"{' and '.join(map(str, sizes))} pixels, which make no batch; set it or make them equal"
                )


def check_circles(params: Params) -> None:
    """ValueError when a model that closes its input around the circle would see pinhole images.

    Declared data sets are not read here; ``panoda.pipeline.runnable`` looks at those, before any stage.
    """
    if not params.model.wrap:
        return
    for role, domain in params.data.domains.items():
        if not getattr(domain.dataset, "full_circle", True):
            raise ValueError(
                f"model.wrap closes every image around the circle, but the images of data.{role} are no full "
                "circles; set wrap: false"
            )


def check_devices(params: Params) -> None:
    """ValueError when a batch does not split over ``runtime.devices``."""
    devices = params.runtime.devices
    if devices == "auto":
        return
    for name, section in trained_stages(params).items():
        if section.batch_size % (devices * section.accumulate):
            raise ValueError(
                f"{name}.batch_size {section.batch_size} does not divide by runtime.devices {devices} times "
                f"accumulate {section.accumulate}; set it to a multiple of {devices * section.accumulate}"
            )


def check_ssl(params: Params) -> None:
    """ValueError when images, crops or start of stage ssl_pretrain do not go with the other sections."""
    ssl, domains = params.ssl, params.data.domains
    if not isinstance(ssl, SslParams):
        return
    if unknown := sorted(set(ssl.images) - set(domains)):
        raise ValueError(
            f"ssl.images names {', '.join(unknown)}; expected domains of data: {', '.join(domains)}"
        )
    for role in ssl.images:
        prepared = domains[role].prepare
        if prepared.height < ssl.crop_height or prepared.width < ssl.crop_width:
            raise ValueError(
                f"ssl: crops of {ssl.crop_height} x {ssl.crop_width} pixels (height x width) are larger than the "
                f"images of data.{role}, prepared at {prepared.height} x {prepared.width}; lower crop_height and "
                "crop_width, or prepare larger images"
            )
    if not params.model.encoder.startswith("vit:"):
        raise ValueError(
            f"ssl.method {ssl.method} pretrains plain vision transformers, not {params.model.encoder}; set "
            "model.encoder to vit:NAME (docs/models.md), or ssl.method to none"
        )
    if params.model.weights is not None:
        raise ValueError(
            f"model.weights is {params.model.weights!r} and ssl.method is {ssl.method}: the encoder can start from "
            "one of them; set the other to null or none"
        )
