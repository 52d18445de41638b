"""One pretraining step of a masked autoencoder: ours beside transformers' ViTMAE with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import Row, Settings, interleaved
from panoda.engine.optim import build_optimizer
from panoda.models.mae import DECODER, MaskedAutoencoder
from panoda.system.machine import peak_memory, reset_peak_memory

SIZES = {
    "tiny": {"patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6},
}
_BLOCK = {
    **{"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"},
    **{"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"},
}
_OUTER = {
    **{"cls_token": "vit.embeddings.cls_token", "pos_embed": "vit.embeddings.position_embeddings"},
    **{"mask_token": "decoder.mask_token", "norm": "vit.layernorm"},
    "patch_embed": "vit.embeddings.patch_embeddings",
}


def as_in_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of ``panoda.models.mae`` by the names of transformers' ``ViTMAEForPreTraining``."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part not in ("blocks", "decoder_blocks"):
            outer = _OUTER.get(part, f"decoder.{part}")
            found[f"{outer}.{rest}".rstrip(".").replace(".proj.", ".projection.")] = value
            continue
        number, _, inner = rest.partition(".")
        place = f"{'vit.layers' if part == 'blocks' else 'decoder.decoder_layers'}.{number}"
        layer, _, kind = inner.rpartition(".")
        if layer == "attn.qkv":
            names = zip("qkv", value.chunk(3), strict=True)
            found |= {f"{place}.attention.{name}_proj.{kind}": one for name, one in names}
        else:
            found[f"{place}.{_BLOCK[layer]}.{kind}"] = value
    return found


def transformers_mae(model: MaskedAutoencoder) -> Any:
    """The model of transformers with the sizes and weights of ours."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    given = model.arguments
    config = ViTMAEConfig(
        image_size=given["img_size"],
        patch_size=given["patch_size"],
        hidden_size=given["embed_dim"],
        num_hidden_layers=given["depth"],
        num_attention_heads=given["num_heads"],
        intermediate_size=4 * given["embed_dim"],
        decoder_hidden_size=given["decoder_embed_dim"],
        decoder_num_hidden_layers=given["decoder_depth"],
        decoder_num_attention_heads=given["decoder_num_heads"],
        decoder_intermediate_size=4 * given["decoder_embed_dim"],
        layer_norm_eps=1e-6,
        norm_pix_loss=True,
    )
    theirs = ViTMAEForPreTraining(config)
    theirs.load_state_dict(as_in_transformers(model.state_dict()))
    return theirs.train()


def rows(settings: Settings) -> Iterator[Row]:
    """Ours, transformers' and ours without removal, one row."""
    size, side, batch = ("tiny", 64, 2) if settings.quick else ("small", 224, 8)
    if settings.device.type == "cuda" and not settings.quick:
        batch = 128
    torch.manual_seed(settings.seed)
    model = MaskedAutoencoder(img_size=side, **SIZES[size], **DECODER)
    theirs = transformers_mae(model).to(settings.device)
    model.to(settings.device)
    images = torch.randn(batch, 3, side, side, device=settings.device)
    length = model.native[0] * model.native[1]

    def ours(mask_ratio: float) -> Callable[[], Tensor]:
        return lambda: model(images, mask_ratio=mask_ratio, norm_pix_loss=True)[0]

    steps = {
        "ours": _step(model, ours(0.75), settings),
        "transformers": _step(theirs, lambda: theirs(images).loss, settings),
        # As near to none as there is a loss: a single patch is removed.
        "unmasked": _step(model, ours(1.5 / length), settings),
    }
    peaks = {name: _peak(step, settings.device) for name, step in list(steps.items())[:2]}
    seconds = interleaved(steps, repeats=settings.repeats, device=settings.device)
    yield {
        "model": f"ViT-{size}, {side} px, batch {batch}",
        "ours s": seconds["ours"],
        "transformers s": seconds["transformers"],
        "ours / transformers": seconds["ours"] / seconds["transformers"],
        "one patch removed s": seconds["unmasked"],
        "saved by masking": 1 - seconds["ours"] / seconds["unmasked"],
        **{f"peak of {name} MB": peak for name, peak in peaks.items()},
    }


def _step(model: nn.Module, loss: Callable[[], Tensor], settings: Settings) -> Callable[[], None]:
    """Forward, backward and AdamW; both sides at the precision that is asked for."""
    optimizer = build_optimizer(model, name="adamw", lr=1e-5, weight_decay=0.05, betas=(0.9, 0.95))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with settings.autocast():
            value = loss()
        value.backward()
        optimizer.step()

    return step


def _peak(step: Callable[[], None], device: torch.device) -> float:
    """Memory in MB that a step needs at its peak, beyond weights, gradients and the optimiser's state."""
    step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    reset_peak_memory()
    before = peak_memory()
    step()
    return (peak_memory() - before) / 2**20
