"""Masked autoencoder (He et al., CVPR 2022, arXiv 2111.06377), for images of any height and width in patches.

A ViT sees the patches that are kept, a small decoder reconstructs the pixels of those that are removed. Names
of weights, initial values and the loss are those of the released code (facebookresearch/mae); blocks are timm's.
Beyond the paper: rectangles, and removal by solid angle.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from panoda.models.core.channels import IMAGENET_MEAN, IMAGENET_STD
from panoda.models.core.checkpoint import check_fit
from panoda.models.core.errors import CheckpointError
from panoda.models.core.products import linear
from panoda.models.core.quick import quicken
from panoda.models.encoders.layers import without_decay
from panoda.models.encoders.positions import Grid, patch_grid, resize_table, sincos_table
from panoda.models.encoders.timm_models import build, normalisation

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"patch_size": 14, "embed_dim": 1280, "depth": 32, "num_heads": 16},
}
"""Keywords of ``create_mae`` for the usual encoders; tiny and small are timm's, the others the paper's."""
DECODER = {"decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16}
"""Keywords of ``create_mae`` for the decoder as published."""
EPS = 1e-6
_OF_DECODER = ("decoder_", "mask_token")


class MaskedAutoencoder(nn.Module):
    """Encoder of what is kept, decoder of what is removed.

    Attributes:
        patch_size: Side of a patch in pixels.
        native: Patches (height, width) that the fixed position tables hold.
        arguments: Keywords with which it was built.
        mean, std: What images are to be normalised with.
    """

    def __init__(
        self,
        *,
        img_size: int | Grid,
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        decoder_embed_dim: int,
        decoder_depth: int,
        decoder_num_heads: int,
        resizes_table: bool = False,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        """Arguments as in ``create_mae``, and ``mean`` and ``std`` as above.

        Args:
            resizes_table: What the encoder's positions are on another grid than ``native``: its table resized,
                as ``panoda.models.encoders.vit`` does it, or a table made for that grid.
        """
        super().__init__()
        self.arguments: dict[str, Any] = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self.patch_size = patch_size
        self.resizes_table, self.mean, self.std = resizes_table, mean, std
        norm: Any = partial(nn.LayerNorm, eps=EPS)
        block = partial(Block, qkv_bias=True, norm_layer=norm)
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.native = patch_grid(height, width, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = _fixed(self.native, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self.decoder_pos_embed = _fixed(self.native, decoder_embed_dim)
        self.patch_embed = PatchEmbed((height, width), patch_size, 3, embed_dim)
        self.blocks = nn.ModuleList(block(embed_dim, num_heads) for _ in range(depth))
        self.norm = norm(embed_dim)
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.decoder_blocks = nn.ModuleList(
            block(decoder_embed_dim, decoder_num_heads) for _ in range(decoder_depth)
        )
        self.decoder_norm = norm(decoder_embed_dim)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size**2 * 3)
        self._initialise()
        quicken(self)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))  # as a linear layer; in place
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self, images: Tensor, *, mask_ratio: float, noise: Tensor | None = None, norm_pix_loss: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Remove patches, reconstruct them, compare.

        Args:
            images: (N, 3, H, W) normalised; the patch divides both sides.
            mask_ratio: Share of the L = H / patch * W / patch patches that is removed; what is kept is
                rounded down.
            noise: (N, L) in place of the shuffling: the patches with the smallest values are kept. None
                draws it uniformly.
            norm_pix_loss: Targets are the pixels of each patch with its own mean and deviation removed.

        Returns:
            loss: Mean squared error over the removed patches of all images (its denominator).
            prediction: (N, L, patch * patch * 3), of every patch; pixels row by row, colours last.
            mask: (N, L) float, 1 where a patch was removed.

        Raises:
            ValueError: sides that are no multiple of the patch, a ratio that keeps or removes nothing, or
                noise of another shape.
        """
        grid = patch_grid(images.shape[2], images.shape[3], self.patch_size)
        patches = self.patchify(images)
        count, length, _ = patches.shape
        if noise is None:
            noise = torch.rand(count, length, device=images.device)
        kept = self._kept(noise, (count, length), mask_ratio)
        tokens = self._encode(patches, kept, grid)
        prediction = self._decode(tokens, kept, grid)
        mask = torch.ones(count, length, device=images.device).scatter(1, kept, 0.0)
        target = normalised(patches) if norm_pix_loss else patches
        error = (prediction.float() - target.float()).square().mean(dim=2)  # (N, L)
        return (error * mask).sum() / mask.sum(), prediction, mask

    def patchify(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, L, patch * patch * 3): pixels row by row, colours last."""
        size = self.patch_size
        cut = images.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # (N, 3, h, p, w, p)
        return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def unpatchify(self, patches: Tensor, grid: Grid) -> Tensor:
        """The inverse of ``patchify`` for h x w patches."""
        size = self.patch_size
        cut = patches.unflatten(2, (size, size, 3)).unflatten(1, grid)  # (N, h, w, p, p, 3)
        return cut.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def _kept(self, noise: Tensor, shape: tuple[int, int], mask_ratio: float) -> Tensor:
        """(N, K) places of the patches that stay."""
        keep = int(shape[1] * (1 - mask_ratio))
        if not 0 < mask_ratio < 1 or not 0 < keep < shape[1]:
            raise ValueError(
                f"mask_ratio is {mask_ratio}, which keeps {keep} of {shape[1]} patches; expected a share between "
                "0 and 1 that keeps one or more and removes one or more, such as 0.75"
            )
        if noise.shape != shape:
            raise ValueError(f"noise is {tuple(noise.shape)}; expected {shape}, a value for every patch")
        return noise.argsort(dim=1, stable=True)[:, :keep]

    def _encode(self, patches: Tensor, kept: Tensor, grid: Grid) -> Tensor:
        """Tokens (N, 1 + K, D) of the patches that stay, the class token first."""
        projection = self.patch_embed.proj
        weight = projection.weight.permute(0, 2, 3, 1).flatten(1)  # colours last, as in patches
        seen = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[2]))
        table = self._table(grid)
        tokens = linear(seen, weight, projection.bias) + table[0, 1:][kept]
        first = (self.cls_token + table[:, :1]).expand(len(tokens), -1, -1)
        tokens = torch.cat((first, tokens), dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def _decode(self, tokens: Tensor, kept: Tensor, grid: Grid) -> Tensor:
        """Prediction (N, L, patch * patch * 3) of every patch."""
        tokens = self.decoder_embed(tokens)
        width = tokens.shape[2]
        places = kept[..., None].expand(-1, -1, width)
        hidden = self.mask_token.to(tokens.dtype).expand(len(tokens), grid[0] * grid[1], width)
        whole = torch.cat((tokens[:, :1], hidden.scatter(1, places, tokens[:, 1:])), dim=1)
        whole = whole + self._made(self.decoder_pos_embed, grid)
        for block in self.decoder_blocks:
            whole = block(whole)
        return self.decoder_pred(self.decoder_norm(whole))[:, 1:]

    def _table(self, grid: Grid) -> Tensor:
        if self.resizes_table:
            return resize_table(self.pos_embed, self.native, grid, prefix=1)
        return self._made(self.pos_embed, grid)

    def _made(self, table: Tensor, grid: Grid) -> Tensor:
        """The fixed table (1, 1 + L, D) for a grid."""
        return table if grid == self.native else sincos_table(grid, table.shape[2], prefix=1).to(table)

    def no_weight_decay(self) -> set[str]:
        """Names of the tokens (and position tables, which are not trained)."""
        return without_decay(self)


def create_mae(
    *,
    img_size: int | Grid,
    patch_size: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    decoder_embed_dim: int,
    decoder_depth: int,
    decoder_num_heads: int,
) -> MaskedAutoencoder:
    """Build a masked autoencoder with random weights.

    Args:
        img_size: Side, or (height, width), in pixels that the position tables are made for. Images of other
            sizes get tables of their own.
        patch_size: Side of a patch in pixels.
        embed_dim: Width of the encoder.
        depth: Blocks of the encoder.
        num_heads: Attention heads of the encoder.
        decoder_embed_dim: Width of the decoder.
        decoder_depth: Blocks of the decoder.
        decoder_num_heads: Attention heads of the decoder.

    Raises:
        ValueError: sides that are no multiple of the patch, a width that is no multiple of 4 (positions) or
            of the heads.

    Example:
        >>> model = create_mae(img_size=(32, 64), **{**SIZES["tiny"], "depth": 1}, **{**DECODER, "decoder_depth": 1})
        >>> loss, prediction, mask = model(torch.rand(2, 3, 32, 64), mask_ratio=0.75)
        >>> prediction.shape, mask.sum(dim=1)
        (torch.Size([2, 8, 768]), tensor([6., 6.]))
    """
    given: dict[str, Any] = dict(locals())
    for width, heads in (("embed_dim", "num_heads"), ("decoder_embed_dim", "decoder_num_heads")):
        if given[width] % given[heads] or given[width] % 4:
            raise ValueError(
                f"{width} is {given[width]}; expected a multiple of {heads} ({given[heads]}) and of 4 "
                "(sines and cosines of two directions)"
            )
    return MaskedAutoencoder(**given)


def mae_for(
    encoder: str, *, decoder_embed_dim: int, decoder_depth: int, decoder_num_heads: int
) -> MaskedAutoencoder:
    """The masked autoencoder that an encoder of panoda can start from.

    Its positions on any grid are those that the encoder will have there, so nothing moves between the two.

    Args:
        encoder: ``vit:NAME`` with a plain VisionTransformer of timm.

    Raises:
        ValueError: another encoder, or one with other parts than MAE's; the message names them.
    """
    kind, _, name = encoder.partition(":")
    if kind != "vit" or not name:
        raise ValueError(f"a masked autoencoder pretrains plain ViTs (vit:NAME), not {encoder}")
    with torch.device("meta"):
        net: Any = build(name, global_pool="")
    if type(net) is not VisionTransformer or not isinstance(net.patch_embed, PatchEmbed):
        raise ValueError(f"a masked autoencoder pretrains plain VisionTransformers of timm, not {encoder}")
    mean, std = normalisation(net)
    attention: Any = net.blocks[0].attn
    model = MaskedAutoencoder(
        img_size=net.patch_embed.img_size,
        patch_size=net.patch_embed.patch_size[0],
        embed_dim=net.embed_dim,
        depth=len(net.blocks),
        num_heads=attention.num_heads,
        decoder_embed_dim=decoder_embed_dim,
        decoder_depth=decoder_depth,
        decoder_num_heads=decoder_num_heads,
        resizes_table=True,
        mean=mean,
        std=std,
    )
    own = {key: value.shape for key, value in model.state_dict().items() if not key.startswith(_OF_DECODER)}
    theirs = {key: value.shape for key, value in net.state_dict().items()}
    if own != theirs:
        other = sorted(key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key))
        raise ValueError(
            f"{encoder} is not built as masked autoencoders are: {', '.join(other[:6])} differ; take a plain ViT "
            "with a class token, such as vit:vit_base_patch16_224.mae"
        )
    return model


def encoder_tensors(model: MaskedAutoencoder) -> dict[str, Tensor]:
    """Weights for the encoder that ``mae_for`` was given, by the names of a ``Segmenter``."""
    left = (*_OF_DECODER, "norm.")  # the encoder gives maps from before the final norm
    state = model.state_dict()
    return {f"encoder.net.{key}": value for key, value in state.items() if not key.startswith(left)}


def load_released(model: MaskedAutoencoder, state_dict: Mapping[str, Tensor]) -> None:
    """Load weights in the layout of the released code, strictly.

    Args:
        state_dict: Encoder and decoder; what the released files hold under ``model``.

    Raises:
        CheckpointError: keys that are missing, unexpected or of another shape, all of them named.
    """
    tensors = dict(state_dict)
    hint = ""
    if any(key.startswith(("encoder.", "backbone.", "decode_head.")) for key in tensors):
        hint = "This is a segmentation checkpoint; a masked autoencoder has decoder_blocks and mask_token."
    elif "decoder_pred.weight" not in tensors and "patch_embed.proj.weight" in tensors:
        hint = "The file holds an encoder alone; take the one with the decoder (mae_visualize_..., ..._full)."
    if not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(
            f"a masked autoencoder's weights are tensors by name; found {', '.join(list(tensors)[:4])}: hand over "
            "what the file holds under 'model'"
        )
    check_fit(model, tensors, where="masked autoencoder", hint=hint)
    model.load_state_dict(tensors)


def normalised(patches: Tensor) -> Tensor:
    """Every patch (..., P) with its own mean and deviation (of P - 1) removed, as in the released code."""
    mean, deviation = _moments(patches)
    return (patches.float() - mean) / deviation


def reconstruction(
    model: MaskedAutoencoder, images: Tensor, prediction: Tensor, mask: Tensor, *, norm_pix_loss: bool
) -> tuple[Tensor, Tensor]:
    """What the model saw, and what it makes of it.

    Args:
        images: (N, 3, H, W), as the model was given them.
        prediction: (N, L, P) of the model.
        mask: (N, L) of the model.
        norm_pix_loss: Targets were normalised: each patch gets back the mean and deviation of the original,
            which the model was not asked for.

    Returns:
        The images without the removed patches (zero, the mean colour), and with the reconstruction in their
        place; (N, 3, H, W) each.
    """
    grid = patch_grid(images.shape[2], images.shape[3], model.patch_size)
    patches = model.patchify(images)
    if norm_pix_loss:
        mean, deviation = _moments(patches)
        prediction = prediction.float() * deviation + mean
    removed = mask[..., None]
    seen = patches * (1 - removed)
    return model.unpatchify(seen, grid), model.unpatchify(seen + prediction.float() * removed, grid)


def noise_by_area(noise: Tensor, area: Tensor) -> Tensor:
    """Noise for the shuffling with which large patches are removed more often.

    Patches leave one after the other, each time with chances in proportion to the areas of those left
    (Efraimidis and Spirakis 2006: the smallest of exponential waiting times / area). As many are removed from
    every image.

    Args:
        noise: Uniform in 0..1, (N, L).
        area: Above 0, (N, L) or (L,); equal areas give uniform removal.

    Returns:
        (N, L); the smallest are kept.
    """
    return noise.clamp(min=1e-12).log() / area


def _moments(patches: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(patches.float(), dim=-1, keepdim=True)
    return mean, (variance + EPS).sqrt()


def _fixed(grid: Grid, channels: int) -> nn.Parameter:
    return nn.Parameter(sincos_table(grid, channels, prefix=1), requires_grad=False)
