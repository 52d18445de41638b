"""BEiT pretraining (Bao et al., ICLR 2022, arXiv 2106.08254): predict the codes of masked patches.

Blocks, relative positions and layer scale are timm's; masking and head are those of the released code
(microsoft/unilm, beit). Beyond the paper: images of any height and width in patches, and other plain ViTs.
"""

from __future__ import annotations

import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models.beit import Beit, RelativePositionBias
from torch import Tensor, nn

from panoda.models.encoders.positions import Grid, patch_grid
from panoda.models.encoders.vit import ViTEncoder
from panoda.models.weights.importing import expand_shared_table

_TRIES = 10


class MaskedTokenModel(nn.Module):
    """An encoder that sees a mask token in place of masked patches, a norm, and a head over the codes.

    Attributes:
        encoder: A plain ViT.
        vocabulary: Number of codes V.
        mean, std: What images are to be normalised with.
        arguments: Keywords with which it was built.
    """

    def __init__(
        self, name: str, *, vocabulary: int, drop_path: float = 0.1, shared_bias: bool = True
    ) -> None:
        """Build with random weights.

        Args:
            name: A network of timm, as ``ViTEncoder`` takes it.
            vocabulary: Number of codes.
            drop_path: Stochastic depth of the last block.
            shared_bias: For Beit: one table of relative positions for all blocks, as published; else one for each.

        Raises:
            ValueError: another kind of network.
        """
        super().__init__()
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self.encoder = ViTEncoder(name, drop_path=drop_path)
        self.vocabulary, self.mean, self.std = vocabulary, self.encoder.mean, self.encoder.std
        net = self.encoder.net
        if shared_bias and type(net) is Beit and net.rel_pos_bias is None:
            net.rel_pos_bias = RelativePositionBias(net.patch_embed.grid_size, net.blocks[0].attn.num_heads)
            for block in net.blocks:
                block.attn.relative_position_bias_table = None
        width = net.embed_dim
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, vocabulary)
        for weight in (self.mask_token, self.head.weight):
            trunc_normal_(weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, images: Tensor, *, mask_ratio: float = 0.4, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predict the codes of masked patches.

        Args:
            images: (N, 3, H, W) normalised; the patch divides both sides.
            mask_ratio: Share of the patches that is masked, about.
            mask: (N, L) bool on the CPU, True where a patch is masked; None draws blocks.

        Returns:
            logits: (M, V) of the M masked patches of all images, image by image.
            mask: (N, L).

        Raises:
            ValueError: sides that are no multiple of the patch.
        """
        grid = self.grid(images)
        if mask is None:
            mask = block_masks(len(images), grid, mask_ratio=mask_ratio)
        patches = self.encoder.embed(images)
        hidden = mask.to(images.device, non_blocking=True)[..., None]
        patches = torch.where(hidden, self.mask_token.to(patches.dtype), patches)
        depth = len(self.encoder.net.blocks)
        (tokens,) = self.encoder.encode(patches, grid, after=[depth - 1])
        tokens = tokens[:, self.encoder.net.num_prefix_tokens :].flatten(0, 1)
        # Found on the CPU, so that nothing waits for the device.
        places = mask.flatten().nonzero()[:, 0].to(images.device, non_blocking=True)
        return self.head(self.norm(tokens[places])), mask

    def loss(
        self, images: Tensor, tokens: Tensor, *, mask_ratio: float, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy over the masked patches of all images (its denominator), and the share predicted right.

        Args:
            images: As in ``forward``.
            tokens: Codes of the patches (N, h, w) int64.
            mask_ratio: As in ``forward``.
            mask: As in ``forward``.

        Raises:
            ValueError: as ``forward``, or codes of another grid.
        """
        grid = self.grid(images)
        if tuple(tokens.shape[1:]) != grid:
            raise ValueError(
                f"the tokenizer gives {tokens.shape[1]} x {tokens.shape[2]} tokens, the encoder has {grid[0]} x "
                f"{grid[1]} patches; take a tokenizer of the same grid (ssl.tokenizer.reduction)"
            )
        logits, mask = self(images, mask_ratio=mask_ratio, mask=mask)
        places = mask.flatten().nonzero()[:, 0].to(images.device, non_blocking=True)
        wanted = tokens.flatten()[places]
        loss = F.cross_entropy(logits.float(), wanted)
        return loss, (logits.detach().argmax(dim=1) == wanted).float().mean()

    def grid(self, images: Tensor) -> Grid:
        """Patches (height, width) of images; ValueError where the patch does not divide a side."""
        return patch_grid(images.shape[2], images.shape[3], self.encoder.patch)


def encoder_tensors(model: MaskedTokenModel) -> dict[str, Tensor]:
    """Weights for the encoder, by the names of a ``Segmenter``; what blocks shared is copied to each."""
    state = expand_shared_table(model.encoder.net.state_dict(), depth=len(model.encoder.net.blocks))
    return {f"encoder.net.{key}": value for key, value in state.items()}


def block_masks(
    count: int,
    grid: Grid,
    *,
    mask_ratio: float = 0.4,
    smallest: int = 16,
    aspect: float = 0.3,
    seed: int | None = None,
) -> Tensor:
    """Masks made of rectangular blocks (algorithm 1 of the paper, with the released code's bounds).

    Blocks of ``smallest`` patches or more, with aspects from ``aspect`` to its inverse, are laid until the share is
    reached or no further one fits: so images differ a little in how many patches are masked.

    Args:
        count: Masks N.
        grid: Patches (height, width).
        mask_ratio: Share of the patches, at most.
        smallest: Patches of a block, less where the share asks for less.
        aspect: Of height to width.
        seed: None draws one from torch's generator.

    Returns:
        (N, h * w) bool, each with one True or more.

    Raises:
        ValueError: a share that masks nothing or everything.
    """
    wanted = round(mask_ratio * grid[0] * grid[1])
    if not 0 < wanted < grid[0] * grid[1]:
        raise ValueError(
            f"mask_ratio is {mask_ratio}, which masks {wanted} of {grid[0] * grid[1]} patches; expected one or more, "
            "and not all, such as 0.4"
        )
    draw = random.Random(int(torch.randint(2**62, (), device="cpu")) if seed is None else seed)
    return torch.stack(
        [_block_mask(grid, wanted, min(smallest, wanted), math.log(aspect), draw) for _ in range(count)]
    )


def _block_mask(grid: Grid, wanted: int, smallest: int, log_aspect: float, draw: random.Random) -> Tensor:
    mask = torch.zeros(grid, dtype=torch.bool, device="cpu")
    masked = 0
    while masked < wanted:
        block = _block(mask, wanted - masked, smallest, log_aspect, draw)
        if block is None:
            break
        mask[block] = True
        masked = int(mask.sum())
    mask = mask.flatten()
    if not masked:  # a grid without room for a block, and the model needs something to predict
        mask[draw.sample(range(len(mask)), wanted)] = True
    return mask


def _block(mask: Tensor, most: int, smallest: int, log_aspect: float, draw: random.Random) -> Any:
    """Slices of a block that masks between one and ``most`` further patches; None after ten tries."""
    height, width = mask.shape
    for _ in range(_TRIES):
        area = draw.uniform(smallest, max(smallest, most))
        aspect = math.exp(draw.uniform(log_aspect, -log_aspect))
        high, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < high < height and 0 < wide < width):
            continue
        top, left = draw.randint(0, height - high), draw.randint(0, width - wide)
        block = (slice(top, top + high), slice(left, left + wide))
        if 0 < high * wide - int(mask[block].sum()) <= most:
            return block
    return None
