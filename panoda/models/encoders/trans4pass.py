"""Trans4PASS encoder: timm's PVTv2 stages behind a deformable patch embedding; MiT behind a plain one.

Source: Trans4PASS (CVPR 2022, arXiv 2203.01452), section 3.2; SegFormer (NeurIPS 2021, arXiv
2105.15203), whose MiT stages are PVTv2's with an MLP ratio of 4 everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import Tensor, nn

from panoda.models.core.channels import IMAGENET_MEAN, IMAGENET_STD
from panoda.models.deform.layers import DeformableConv
from panoda.models.encoders.layers import LayeredEncoder


class DeformablePatchEmbed(DeformableConv):
    """Deformable 7x7 convolution of stride 4, then LayerNorm (eps 1e-5) over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(3, channels, kernel_size=7, stride=4, padding=3)
        self.norm = nn.LayerNorm(channels)
        # timm's rule for convolutions, so that this embedding starts like the other three.
        nn.init.normal_(self.proj.weight, std=math.sqrt(2.0 / (7 * 7 * channels)))
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, H/4, W/4, C), channels last as the first stage wants it."""
        return self.norm(super().forward(x).permute(0, 2, 3, 1))


class Encoder(LayeredEncoder):
    """Four stages at strides 4, 8, 16, 32.

    Attributes:
        num_layers: Blocks plus embedding plus final norm, for layer-wise learning rates.
        mean, std: What images are normalised with.
        patch_embed: The 7x7 stride-4 embedding of the first stage, deformable or not.
        stages: timm's stages; all but the first begin with a plain 3x3 stride-2 embedding.
    """

    strides = (4, 8, 16, 32)
    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(
        self,
        depths: Sequence[int],
        channels: Sequence[int],
        *,
        heads: Sequence[int],
        drop_path: float = 0.1,
        deformable: bool = True,
    ) -> None:
        """Build with random weights; ``drop_path`` grows linearly to that of the last block.

        ``deformable`` off gives MiT, whose weights have the same names but for the deformation's.
        """
        super().__init__()
        self.depths, self.channels = tuple(depths), tuple(channels)
        pyramid = PyramidVisionTransformerV2(
            num_classes=0,
            depths=self.depths,
            embed_dims=self.channels,
            num_heads=tuple(heads),
            sr_ratios=(8, 4, 2, 1),
            mlp_ratios=(4, 4, 4, 4),
            drop_path_rate=drop_path,
        )
        self.patch_embed = DeformablePatchEmbed(self.channels[0]) if deformable else pyramid.patch_embed
        self.stages = pyramid.stages
        self.num_layers = sum(self.depths) + 2

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> four maps (N, C_i, H / 4 / 2^i, W / 4 / 2^i), sizes rounded up."""
        x = self.patch_embed(x)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs
