"""Plain vision transformers of timm (ViT, MAE, DINOv2, BEiT, DINOv3) as encoders for images of any size.

Blocks, patch embedding and weights are timm's; ours are only the positions on a grid of any height x width
(``panoda.models.encoders.positions``) and the choice of blocks whose tokens are given as maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from timm.models.beit import Attention as BeitAttention
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from panoda.models.encoders import positions
from panoda.models.encoders.layers import LayeredEncoder, checked_indices, pad_to_multiple
from panoda.models.encoders.positions import Displacements, Grid
from panoda.models.encoders.timm_models import build, normalisation

# SETR's blocks of 24 (arXiv 2012.15840, released configuration), BEiT's and MAE's of 12.
_USUAL = {12: (3, 5, 7, 11), 24: (9, 14, 19, 23)}
_CACHED = 8


class ViTEncoder(LayeredEncoder):
    """Four maps of one stride from a plain vision transformer.

    Attributes:
        net: timm's network up to the last block taken, without final norm and head; its weights keep timm's
            names after ``net.``.
        indices: Blocks whose tokens are given, from 0.
        channels: Width of each map.
        strides: The patch size, once per map.
        num_layers: Blocks plus embedding plus final norm, for layer-wise learning rates.
        wrap: Whether columns lie on a circle (see ``panoda.models.encoders.positions``).
        mean, std: What timm's published weights want images to be normalised with.
    """

    def __init__(
        self,
        name: str,
        *,
        drop_path: float = 0.1,
        wrap: bool = False,
        indices: Sequence[int] | None = None,
    ) -> None:
        """Build with random weights; nothing is downloaded.

        Args:
            name: A VisionTransformer, Beit or Eva of timm. With the tag ``mae`` positions are the fixed
                sin-cos table that MAE is pretrained with; set ``net.pos_embed.requires_grad`` to train it.
            drop_path: Stochastic depth of the last block.
            wrap: For full panoramas: positions close around the circle.
            indices: Blocks from 0; None: 3/5/7/11 of 12, 9/14/19/23 of 24, else the ends of four equal parts.

        Raises:
            ValueError: unknown model, another kind of network, indices it does not have, or positions that
                ``wrap`` has no rule for.
        """
        super().__init__()
        net: Any = build(name, drop_path_rate=drop_path, dynamic_img_size=True, global_pool="")
        if type(net) not in (VisionTransformer, Beit, Eva) or not isinstance(net.patch_embed, PatchEmbed):
            embed = type(getattr(net, "patch_embed", None)).__name__
            raise ValueError(
                f"timm's {name!r} is a {type(net).__name__} (patch embedding: {embed}); expected a plain "
                f"VisionTransformer, Beit or Eva; 'timm:{name}' takes networks with a pyramid of feature maps"
            )
        rope = getattr(net, "rope", None)
        if wrap and rope is not None and not isinstance(rope, RotaryEmbeddingDinoV3):
            raise ValueError(f"wrap=True has no rule for {name!r} ({type(rope).__name__}); use wrap=False")
        self.patch = _square(net.patch_embed.patch_size, name)
        self.indices = _chosen(len(net.blocks), indices, name)
        self.channels = (net.embed_dim,) * len(self.indices)
        self.strides = (self.patch,) * len(self.indices)
        self.mean, self.std = normalisation(net)
        self.wrap = wrap
        net.prune_intermediate_layers(list(self.indices), prune_norm=True, prune_head=True)
        net.patch_embed.strict_img_size = False
        self.num_layers = len(net.blocks) + 2
        self.net: Any = net
        self._cache: dict[tuple[Any, ...], Any] = {}
        if name.partition(".")[2].startswith("mae"):
            table = positions.sincos_table(self.native, net.embed_dim, prefix=net.num_prefix_tokens)
            net.pos_embed = nn.Parameter(table, requires_grad=False)
        for block in net.blocks:
            if isinstance(block.attn, BeitAttention):
                block.attn.__class__ = _GivenBias

    @property
    def native(self) -> Grid:
        """Patches (height, width) that the position tables hold."""
        return self.net.patch_embed.grid_size

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> maps (N, C, H / patch, W / patch), sizes rounded up, before any final norm.

        Where the patch does not divide a side, the last row and column are repeated; with ``wrap`` the
        columns go on from the left edge. Run it once at a size before exporting it at that size: relative
        positions are then constants of the graph.
        """
        x = pad_to_multiple(x, self.patch, wrap=self.wrap)
        grid = (x.shape[2] // self.patch, x.shape[3] // self.patch)
        outputs = []
        for tokens in self.encode(self.embed(x), grid, after=self.indices):
            grids = tokens[:, self.net.num_prefix_tokens :].unflatten(1, grid)
            outputs.append(grids.permute(0, 3, 1, 2).contiguous())
        return outputs

    def embed(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) of whole patches -> their embeddings (N, h * w, D), without positions."""
        patches = self.net.patch_embed(x)
        return patches.flatten(1, 2) if patches.ndim == 4 else patches

    def encode(self, patches: Tensor, grid: Grid, *, after: Sequence[int]) -> list[Tensor]:
        """Embeddings -> tokens (N, prefix + h * w, D) after some blocks, class and register tokens first."""
        tokens = self._placed(patches, grid)
        outputs = []
        for number, block in enumerate(self.net.blocks):
            tokens = block(tokens, **self._relations(number, grid))
            if number in after:
                outputs.append(tokens)
        return outputs

    def _placed(self, patches: Tensor, grid: Grid) -> Tensor:
        """Class and register tokens, then patches, with their absolute positions."""
        net = self.net
        prefix = [net.cls_token, getattr(net, "reg_token", None)]
        leading = [token.expand(patches.shape[0], -1, -1) for token in prefix if token is not None]
        whole = not getattr(net, "no_embed_class", False)  # whether the table has entries for them
        table = None
        if net.pos_embed is not None:
            count = net.num_prefix_tokens if whole else 0
            table = positions.resize_table(net.pos_embed, self.native, grid, prefix=count, wrap=self.wrap)
        if table is not None and not whole:
            patches = patches + table
        tokens = torch.cat((*leading, patches), dim=1)
        if table is not None and whole:
            tokens = tokens + table
        tokens = net.pos_drop(tokens)
        return net.norm_pre(tokens) if hasattr(net, "norm_pre") else tokens

    def _relations(self, number: int, grid: Grid) -> dict[str, Tensor | None]:
        """What block ``number`` is told about positions besides its tokens."""
        net, kind = self.net, type(self.net)
        if kind is Eva and net.rope is not None:
            rotation = self._rotation(grid)
            return {"rope": rotation[number] if net.rope_mixed else rotation}
        if kind is not Beit:
            return {}
        table = net.blocks[number].attn.relative_position_bias_table
        bias = None if table is None else self._bias(table, grid)
        if net.rel_pos_bias is not None:
            shared = self._bias(net.rel_pos_bias.relative_position_bias_table, grid)
            bias = shared if bias is None else bias + shared
        return {"shared_rel_pos_bias": bias}

    def _bias(self, table: Tensor, grid: Grid) -> Tensor:
        def prepared() -> Displacements:
            return Displacements.between(self.native, grid, wrap=self.wrap).to(table.device)

        return self._kept(("displacements", grid, table.device), prepared).bias(table, self.native)

    def _rotation(self, grid: Grid) -> Tensor:
        rope: Any = self.net.rope
        if any(True for _ in rope.parameters()):
            return rope.get_embed(list(grid))

        def rotation() -> Tensor:
            mode = rope.training
            rope.eval()  # shifting and scaling coordinates at random belongs to pretraining
            try:
                return positions.round_rotation(rope, grid) if self.wrap else rope.get_embed(list(grid))
            finally:
                rope.train(mode)

        device = next(self.net.parameters()).device
        return self._kept(("rotation", grid, device), rotation)

    def _kept(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What depends on the size alone and not on weights, made once per size."""
        if key in self._cache:
            return self._cache[key]
        # A tensor of inference mode could not serve a later training step, one of a trace no later call.
        with torch.inference_mode(False), torch.no_grad():
            made = make()
        if not torch.compiler.is_compiling():
            if len(self._cache) >= _CACHED:
                self._cache.clear()
            self._cache[key] = made
        return made

    @cached_property
    def _numbers(self) -> dict[str, int]:
        parts = {name: name.split(".") for name, _ in self.named_parameters()}
        return {name: int(part[2]) + 1 if part[1] == "blocks" else 0 for name, part in parts.items()}


class _GivenBias(BeitAttention):
    """timm's attention whose position bias comes whole as ``shared_rel_pos_bias``, for any grid."""

    def _get_rel_pos_bias(self) -> Tensor:
        return self.relative_position_bias_table.new_zeros(())


def _square(patch: tuple[int, int], name: str) -> int:
    if patch[0] != patch[1]:
        raise ValueError(f"timm's {name!r} has patches of {patch} pixels; only square ones are supported")
    return patch[0]


def _chosen(depth: int, indices: Sequence[int] | None, name: str) -> tuple[int, ...]:
    """Checked numbers of the blocks whose tokens are given, increasing."""
    if indices is None:
        return _USUAL.get(depth) or tuple(sorted({max((k * depth) // 4 - 1, 0) for k in (1, 2, 3, 4)}))
    return checked_indices(indices, depth, name, "blocks {}")
