"""What SETR's three heads share; the heads are in ``decoders/setr_{naive,pup,mla}.py``.

Source: SETR (CVPR 2021, arXiv 2012.15840), section 3.3, with the widths, input norms and loss weights of
its released configurations in MMSegmentation (auxiliary weight 0.4 each; MLA's levels deepest first).
Checked against numbers of MMSegmentation's heads with shared weights.

Where maps are only resized before a 1x1 prediction, the prediction comes first here: both commute, and
K channels are cheaper to resize than 256. Sizes are those of a patch of 16 pixels (x2 four times, x4);
with other patches the maps are resized to the strides that these give.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from panoda.models.core.head import AuxiliaryHeads, Decoder
from panoda.models.encoders.layers import cells_of

AUXILIARY_WEIGHT = 0.4


class SETRDecoder(Decoder):
    """What the three heads share: maps of one stride, and auxiliary heads on them.

    The encoder hands over its blocks' outputs without a norm: each head begins with a LayerNorm.

    Attributes:
        auxiliary_kernel: Kernel size of the auxiliary heads' first layer.
        auxiliary_on_last: Whether the published model has one on the last map, too.
        auxiliary_share: The features' width is that many times the auxiliary heads'.
    """

    needs_pyramid = False
    has_auxiliary_heads = True
    default_width = 256
    auxiliary_kernel: ClassVar[int] = 1
    auxiliary_on_last: ClassVar[bool] = False
    auxiliary_share: ClassVar[int] = 1

    def __init__(self, channels: Sequence[int], **given: Any) -> None:
        """Build as ``Decoder`` for maps that all have one stride, the encoder's patch size.

        An auxiliary weight is that of a head on each map from the first on, 0 for none; None for 0.4 on every map that
        has one in the published model.

        Raises:
            ValueError: as ``Decoder``, strides that differ or are below 8, more weights than maps.
        """
        super().__init__(channels, **given)
        if len(set(self.strides)) > 1 or self.strides[0] < 8:
            raise ValueError(
                f"{self.name} wants maps of one stride, at least 8, such as a ViT's; the encoder gives "
                f"strides {self.strides}; choose a ViT without neck, or a decoder for pyramids"
            )
        published = (AUXILIARY_WEIGHT,) * (len(self.channels) - (not self.auxiliary_on_last))
        self.heads = AuxiliaryHeads(
            self.channels,
            published if self.auxiliary_weights is None else self.auxiliary_weights,
            num_classes=self.num_classes,
            width=max(1, self.width // self.auxiliary_share),
            kernel_size=self.auxiliary_kernel,
            norm=True,
        )

    def size_at(self, x: Tensor, stride: int) -> tuple[int, int]:
        """Height and width of a map ``x`` at ``stride`` instead of the encoder's, rounded up."""
        height, width = (cells_of(side * self.strides[0], stride) for side in x.shape[2:])
        return height, width
