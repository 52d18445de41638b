"""Decoders of deterministic weights whose outputs are stored, and the script that took SETR's numbers.

``fixtures/setr.npz``: MMSegmentation's SETR heads under the weights of ``case``, in float64. Rewritten
by ``python tests/decoder_numbers.py`` where mmsegmentation 1.2.2, mmengine 0.10.7, mmcv-lite 2.1.0 and
OpenCV are importable; the project does not depend on them.

``fixtures/dmlpv2.npz``: what the operations of the released Trans4PASS+ code give in float64, for its
decoder under the weights of ``case`` and for the whole of its T model under those of the released
fixture.
"""

from __future__ import annotations

import re
import sys
import types
from typing import Any

import numpy as np
import torch
from parity import OWN, filled, image, layout_of
from torch import Tensor, nn

from panoda.models.core.decoders import create_decoder
from panoda.models.core.head import PYRAMID, Decoder

CLASSES = 3
SIZES = {4: (18, 26), 8: (9, 13), 16: (5, 7), 32: (3, 4)}
SETR = ("setr_naive", "setr_pup", "setr_mla")
# Our names -> MMSegmentation's, after the BatchNorms.
_NAMES = (
    (r"^block\.", "up_convs.0.0."),
    (r"^blocks\.(\d)\.", r"up_convs.\1.0."),
    (r"^norms\.", "neck.norm."),
    (r"^reduce\.", "neck.mla.channel_proj."),
    (r"^extract\.", "neck.mla.feat_extract."),
    (r"^branches\.", "up_convs."),
    (r"^predict\.", "conv_seg."),
)


def case(name: str, *, auxiliary: bool = False) -> tuple[Decoder, list[Tensor]]:
    """A small decoder in evaluation mode and its maps, both in float64."""
    strides = (16, 16, 16, 16) if name in SETR else PYRAMID
    channels = (12, 12, 12, 12) if name in SETR else (6, 8, 10, 12)
    decoder = create_decoder(
        name,
        channels=channels,
        strides=strides,
        num_classes=CLASSES,
        width=8,
        auxiliary_weights=None if auxiliary else (),
    )
    decoder.load_state_dict(filled(sorted(layout_of(decoder.state_dict()))))
    maps = [
        image((2, c, *SIZES[s])) * (1 + 0.3 * i)
        for i, (c, s) in enumerate(zip(channels, strides, strict=True))
    ]
    return decoder.double().eval(), [x.double() for x in maps]


def setr_results(name: str) -> dict[str, Tensor]:
    """Our outputs as the fixture stores them: logits, and those of the first auxiliary head.

    MMSegmentation resizes x4 before a 1x1 prediction, which commutes.
    """
    decoder, maps = case(name, auxiliary=True)
    with torch.no_grad():
        found = {name: decoder(maps)[0]}
        if name != "setr_mla":
            found[f"{name}_auxiliary"] = enlarged(decoder.auxiliary(maps)[0][1])
    if name == "setr_naive":
        found[name] = enlarged(found[name])
    return {key: value[..., ::3, ::3] for key, value in found.items()}


def enlarged(x: Tensor) -> Tensor:
    """Four times as high and wide."""
    return nn.functional.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)


def import_mmseg() -> Any:
    """MMSegmentation's decode heads without the compiled operators of mmcv, none of which SETR has."""

    class Operators(types.ModuleType):
        def __getattr__(self, name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (nn.Module,), {})

    operators = Operators("mmcv.ops")
    operators.__path__ = []  # type: ignore[attr-defined]
    sys.modules["mmcv.ops"] = operators
    import mmseg.models.decode_heads as heads
    import mmseg.models.necks as necks

    return types.SimpleNamespace(Up=heads.SETRUPHead, MLA=heads.SETRMLAHead, Neck=necks.MLANeck)


def load_theirs(module: nn.Module, ours: dict[str, Tensor]) -> None:
    """Our weights under MMSegmentation's names, strictly; MLA's neck is a module beside its head."""
    state = {}
    for key, value in ours.items():
        key = re.sub(r"(?<=\d)\.norm\.|(?<=block)\.norm\.", ".bn.", key)
        for pattern, replacement in _NAMES:
            key = re.sub(pattern, replacement, key)
        state[key] = value
    module.load_state_dict(state)


def theirs(name: str) -> dict[str, Tensor]:
    """The same outputs by MMSegmentation."""
    mm = import_mmseg()
    decoder, maps = case(name, auxiliary=True)
    main = {k: v for k, v in decoder.state_dict().items() if not k.startswith("heads.")}
    norm = {"type": "BN"}
    common: dict[str, Any] = {
        "num_classes": CLASSES,
        "dropout_ratio": 0,
        "norm_cfg": norm,
        "align_corners": False,
    }
    with torch.no_grad():
        if name == "setr_mla":
            head = mm.MLA(in_channels=[4] * 4, channels=8, mla_channels=2, in_index=[0, 1, 2, 3], **common)
            head.neck = mm.Neck(in_channels=[12] * 4, out_channels=4, norm_cfg=norm, act_cfg={"type": "ReLU"})
            head.double().eval()
            load_theirs(head, main)
            return {name: head(head.neck(maps))[..., ::3, ::3]}
        kernel, steps, scale = (1, 1, 4) if name == "setr_naive" else (3, 4, 2)
        common |= {"in_channels": 12, "channels": 8, "kernel_size": kernel}
        head = mm.Up(in_index=3, num_convs=steps, up_scale=scale, **common).double().eval()
        load_theirs(head, main)
        small = mm.Up(in_index=0, num_convs=1, up_scale=4, **common).double().eval()
        named = {"0.0.": "norm.", "0.1.": "block.", "0.2.": "predict."}
        own = {named[k[:4]] + k[4:]: v for k, v in decoder.heads.heads.state_dict().items() if k[:4] in named}
        load_theirs(small, own)
        return {name: head(maps)[..., ::3, ::3], f"{name}_auxiliary": small(maps)[..., ::3, ::3]}


if __name__ == "__main__":
    np.savez_compressed(OWN / "setr.npz", **{k: v.numpy() for name in SETR for k, v in theirs(name).items()})
