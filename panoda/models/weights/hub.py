"""Published weights of timm's networks, from the Hugging Face hub; pickles are read weights-only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from panoda.models.core.errors import CheckpointError
from panoda.models.encoders.factory import create_encoder
from panoda.models.weights.catalogue import SEGFORMERS
from panoda.models.weights.importing import Imported, import_file, import_installed, import_state
from panoda.models.weights.packaged import package_of
from panoda.models.weights.released import read_state_dict

_HUB = "hf-hub:"
_FILES = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Published:
    """Where the weights of an encoder are published.

    Attributes:
        encoder: As ``create_encoder`` takes it, with timm's tag.
        repository: On the hub.
        tag: What the weights were trained on and how.
        licence: As timm states it; None where it does not.
        mean, std: What images are normalised with.
    """

    encoder: str
    repository: str
    tag: str
    licence: str | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def file_name(self) -> str:
        """Name below data/weights."""
        stem = self.encoder.rpartition(":")[2]
        stem = stem if "." in stem else f"{stem}.{self.tag}"
        return f"{stem}.safetensors"


def published(encoder: str) -> Published:
    """The published weights of an encoder in timm.

    Args:
        encoder: ``vit:NAME``, ``timm:NAME`` or ``pvt_v2_b0..5``, with or without tag; or a bare name of timm.

    Raises:
        CheckpointError: an encoder without weights in timm; the message says where to look instead.
        ValueError: timm has no such network.
    """
    name = encoder.rpartition(":")[2]
    if not timm.is_model(name.partition(".")[0]):
        _build(encoder)  # says what is wrong with a name of ours
        raise CheckpointError(
            f"{encoder}: timm has no weights for it; `panoda weights list` says where there are some, and "
            "`panoda weights import FILE` reads them"
        )
    tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
    try:
        cfg: Any = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:  # no such tag
        cfg = None
    if cfg is None or not cfg.has_weights or not cfg.hf_hub_id:
        raise CheckpointError(
            f"{encoder}: timm has no weights under that tag; it has {', '.join(tags) or 'none'}"
        )
    tagged = f"{name.partition('.')[0]}.{cfg.tag}" if cfg.tag else name
    repository = f"{cfg.hf_hub_id}{tagged}" if cfg.hf_hub_id.endswith("/") else cfg.hf_hub_id
    return Published(_named(encoder, tagged), repository, cfg.tag or "", cfg.license, cfg.mean, cfg.std)


def tags(encoder: str) -> list[str]:
    """Every set of published weights that timm has for a network, as ``published`` takes them."""
    kind, _, name = encoder.rpartition(":")
    bare = name.partition(".")[0]
    found = timm.list_pretrained(f"{bare}.*")
    if not found:
        published(encoder)  # says why not
    return [f"{kind}:{tag}" if kind else tag for tag in found]


def imagenet(encoder: str) -> tuple[Imported, str]:
    """As ``fetch``, but from an installed package where there is one for the encoder."""
    if package_of(encoder):
        found = published(encoder)
        imported = import_installed(found.encoder)
        if imported is not None:
            return imported, found.file_name
    return fetch(encoder)


def fetch(name: str, *, encoder: str | None = None) -> tuple[Imported, str]:
    """Download published weights and bring them into our layout.

    Args:
        name: As ``published`` takes it, ``hf-hub:OWNER/NAME``, or a complete model of ``SEGFORMERS``.
        encoder: For a repository of the hub that does not say which network it holds.

    Returns:
        The weights, and their file name below data/weights.

    Raises:
        CheckpointError: nothing there, no network (with what was tried and what to do by hand), or files that
            do not fit the network.
    """
    if name in SEGFORMERS:
        repository = SEGFORMERS[name]
        _download(repository, ("config.json",))  # the hub's client puts it beside the weights
        return import_file(_download(repository), source=f"{_HUB}{repository}"), f"{name}.safetensors"
    if name.startswith(_HUB):
        repository = name.removeprefix(_HUB)
        chosen, licence = encoder or _architecture(repository), None
        file_name = f"{repository.rpartition('/')[2]}.safetensors"
    else:
        found = published(name)
        repository, chosen = found.repository, found.encoder
        licence, file_name = found.licence, found.file_name
    _build(chosen)  # a network that cannot be an encoder is refused before anything is downloaded
    path = _download(repository)
    imported = import_state(
        read_state_dict(path), source=f"{_HUB}{repository}", name=file_name, encoder=chosen
    )
    card = imported.card.model_copy(update={"licence": licence})
    return Imported(imported.tensors, card), file_name


def _download(repository: str, files: tuple[str, ...] = _FILES) -> Path:
    """The first of the files that the repository has; the hub's client keeps it in its cache."""
    # Imported here: only this needs the hub's client.
    from huggingface_hub import hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    tried = ", ".join(hf_hub_url(repository, file) for file in files)
    for file in files:
        try:
            return Path(hf_hub_download(repository, file))
        except LocalEntryNotFoundError as error:
            raise CheckpointError(
                f"{repository}: the hub cannot be reached, and its cache lacks the file. Tried: "
                f"{hf_hub_url(repository, file)}. By hand: download that file on a machine with a network, "
                "copy it here under a name of its own and run `panoda weights import FILE --encoder ENCODER`"
            ) from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError) as error:
            reason = (str(error).strip().splitlines() or ["no reason given"])[0]
            raise CheckpointError(
                f"{repository}: the hub refuses it ({type(error).__name__}: {reason}). Tried: "
                f"{hf_hub_url(repository, file)}. Weights behind a form (DINOv3) need your consent on that "
                "page and `hf auth login`; or download by hand and run `panoda weights import FILE --encoder "
                "ENCODER`"
            ) from error
    raise CheckpointError(f"{repository}: none of these files is there: {tried}")


def _architecture(repository: str) -> str:
    """The encoder of a hub repository that timm wrote."""
    config = json.loads(_download(repository, ("config.json",)).read_text(encoding="utf-8"))
    name = config.get("architecture")
    if not isinstance(name, str):
        raise CheckpointError(
            f"{repository}: its config.json names no network of timm (no 'architecture'); say which it is "
            "with --encoder, such as --encoder vit:vit_base_patch16_224.mae"
        )
    return _named(name, name)


def _named(encoder: str, tagged: str) -> str:
    """The name of the encoder with its tag: prefix as given, else the kind that takes the network."""
    kind, _, rest = encoder.rpartition(":")
    if kind:
        return f"{kind}:{tagged}"
    if rest.startswith("pvt_v2"):
        return rest.partition(".")[0]
    try:
        _build(f"vit:{tagged}")
    except ValueError:
        _build(f"timm:{tagged}")
        return f"timm:{tagged}"
    return f"vit:{tagged}"


def _build(encoder: str) -> None:
    with torch.device("meta"):
        create_encoder(encoder)
