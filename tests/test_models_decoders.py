"""Decoders by name: shapes, gradients, export, auxiliary heads, refusals."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from decoder_numbers import CLASSES, SETR
from torch import Tensor, nn

from panoda.config import DECODERS
from panoda.models.core.decoders import create_decoder, decoder_class
from panoda.models.core.head import PYRAMID, AuxiliaryHeads, ConvBlock, Decoder
from panoda.models.decoders.dmlpv2 import ChannelMLP
from panoda.models.decoders.upernet import PyramidPooling

NAMES = ("dmlp", "dmlpv2", "segformer", "setr_naive", "setr_pup", "setr_mla", "upernet", "fcn")
CHANNELS = (6, 8, 10, 12)


def build(name: str, **options: Any) -> Decoder:
    strides = (16, 16, 16, 16) if name in SETR else PYRAMID
    options = {"channels": CHANNELS, "strides": strides, "num_classes": CLASSES, "width": 8} | options
    return create_decoder(name, **options)


def maps(decoder: Decoder, height: int, width: int) -> list[Tensor]:
    """What an encoder makes of images of this size: sides rounded up."""
    torch.manual_seed(0)
    return [
        torch.randn(2, c, math.ceil(height / s), math.ceil(width / s))
        for c, s in zip(decoder.channels, decoder.strides, strict=True)
    ]


def test_names() -> None:
    assert sorted(DECODERS) == sorted(NAMES)
    for name in NAMES:
        decoder = build(name)
        assert (decoder.name, decoder.num_classes, decoder.width) == (name, CLASSES, 8)
        assert decoder.needs_pyramid == (name not in (*SETR, "fcn"))
        assert decoder.align_corners == name.startswith("dmlp")
        assert decoder.predict.out_channels == CLASSES and decoder.predict.kernel_size == (1, 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width"), [(77, 101), (32, 33)])
def test_shapes_at_odd_sizes(name: str, height: int, width: int) -> None:
    decoder = build(name).eval()
    stages = maps(decoder, height, width)
    before = [stage.clone() for stage in stages]
    with torch.no_grad():
        logits, features = decoder(stages)
    stride = {"setr_naive": 16, "setr_pup": 1, "fcn": 32}.get(name, 4)
    assert decoder.feature_stride == {"setr_naive": 16, "fcn": 32}.get(name, 4)
    base = 16 if name in SETR else 1  # SETR sees sides rounded up to its patches
    sides = [math.ceil(side / base) * base for side in (height, width)]
    assert logits.shape == (2, CLASSES, *(math.ceil(side / stride) for side in sides))
    assert features.shape == (2, 8, *(math.ceil(side / decoder.feature_stride) for side in sides))
    for stage, old in zip(stages, before, strict=True):
        assert torch.equal(stage, old)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name: str) -> None:
    torch.manual_seed(1)
    decoder = build(name, width=32)
    for parameter in decoder.parameters():
        if not parameter.any():  # layers that start at zero hide what lies before them
            nn.init.normal_(parameter, std=0.1)
    stages = [stage.requires_grad_() for stage in maps(decoder, 160, 192)]
    logits, _ = decoder(stages)
    auxiliary = decoder.auxiliary(stages)
    loss = logits.square().mean() + sum(weight * value.square().mean() for weight, value in auxiliary)
    loss.backward()
    silent = [key for key, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent
    used = range(3, 4) if name == "fcn" else range(4)
    assert all(stages[i].grad is not None and stages[i].grad.any() for i in used)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_stays_close(name: str) -> None:
    decoder = build(name).eval()
    stages = maps(decoder, 64, 96)
    with torch.no_grad():
        exact, features = decoder(stages)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low, low_features = decoder(stages)
    assert (low.float() - exact).abs().max() < 0.1 * exact.abs().max()
    assert (low_features.float() - features).abs().max() < 0.1 * features.abs().max()


@pytest.mark.parametrize("name", ["dmlpv2", "setr_naive", "fcn"])
def test_decoder_compiles_without_graph_breaks(name: str) -> None:
    """DMLP is compiled within the model, in test_models_segmenter; the others are exported below."""
    decoder = build(name).eval()
    stages = maps(decoder, 32, 32)
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(stages), decoder(stages))


class Whole(nn.Module):
    """A decoder behind the smallest of encoders."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        pairs = zip(decoder.channels, decoder.strides, strict=True)
        self.stem = nn.ModuleList(nn.Conv2d(3, c, 1, stride=s) for c, s in pairs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.decoder([layer(x) for layer in self.stem])


@pytest.mark.parametrize("name", ["segformer", "setr_pup", "setr_mla", "upernet"])
def test_export_is_bound_to_no_size(name: str) -> None:
    model = Whole(build(name)).eval()
    dynamic = {side: torch.export.Dim.DYNAMIC for side in (0, 2, 3)}
    exported = torch.export.export(
        model, (torch.randn(2, 3, 128, 192),), dynamic_shapes=(dynamic,), strict=False
    ).module()
    x = torch.randn(1, 3, 96, 320)  # the last stage is three pixels high: one of the pool scales
    torch.testing.assert_close(exported(x), model(x))


# --- auxiliary heads --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_published_auxiliary_heads(name: str) -> None:
    decoder = build(name)
    stages = maps(decoder, 77, 101)
    found = decoder.auxiliary(stages)
    expected = {"setr_naive": 3, "setr_pup": 3, "setr_mla": 4, "upernet": 1}.get(name, 0)
    assert [weight for weight, _ in found] == [0.4] * expected
    assert all(logits.shape == (2, CLASSES, 5, 7) for _, logits in found)  # stride 16
    assert (decoder_class(name).has_auxiliary_heads) == (expected > 0)
    bare = build(name, auxiliary_weights=())
    assert bare.auxiliary(stages) == []
    assert not any(key.startswith("heads.") for key in bare.state_dict())


def test_auxiliary_weights_choose_the_maps() -> None:
    decoder = build("setr_pup", auxiliary_weights=(0.2, 0.3, 0.4))
    assert [weight for weight, _ in decoder.auxiliary(maps(decoder, 32, 32))] == [0.2, 0.3, 0.4]
    decoder = build("setr_naive", auxiliary_weights=[0, 0, 0.4])
    heads = decoder.heads
    assert isinstance(heads, AuxiliaryHeads) and list(heads.heads) == ["2"]
    stages = [stage.requires_grad_() for stage in maps(decoder, 32, 32)]
    ((weight, logits),) = decoder.auxiliary(stages)
    assert weight == 0.4
    logits.square().sum().backward()
    assert [stage.grad is not None for stage in stages] == [False, False, True, False]
    assert build("upernet", auxiliary_weights=[1.0]).auxiliary(maps(build("upernet"), 32, 32))[0][0] == 1.0
    every = build("setr_pup", auxiliary_weights=(0.1, 0.2, 0.3, 0.4))
    assert len(every.auxiliary(maps(every, 32, 32))) == 4


@pytest.mark.parametrize("name", [n for n in DECODERS if decoder_class(n).has_auxiliary_heads])
def test_auxiliary_heads_cost_nothing_at_inference(name: str) -> None:
    decoder = build(name).eval()
    bare = copy.deepcopy(decoder)
    bare.heads = nn.Identity()
    stages = maps(decoder, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(decoder(stages), bare(stages), rtol=0, atol=0)


# --- parts ------------------------------------------------------------------------------------------


def test_channel_mlp_by_hand() -> None:
    mlp = ChannelMLP(4)
    assert mlp.se.fc1.out_channels == 1  # a quarter
    x = torch.randn(1, 4, 3, 3)
    for layer in (mlp.fc1, mlp.fc2):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(mlp.se.fc2.weight)
    nn.init.zeros_(mlp.se.fc2.bias)  # every gate is one half
    mlp.gamma.data = torch.tensor([0.0, 1.0, 2.0, 3.0])
    nn.init.zeros_(mlp.depthwise.weight)
    mlp.depthwise.bias.data.fill_(1.0)
    torch.testing.assert_close(mlp(x), 0.5 * (x + mlp.gamma.view(1, 4, 1, 1)))


def test_pooling_takes_a_batch_of_one_in_training() -> None:
    pooling = PyramidPooling(6, 4).train()
    out = pooling(torch.randn(1, 6, 5, 9))
    assert out.shape == (1, 4, 5, 9)
    out.sum().backward()
    single = pooling.branches[0]
    assert isinstance(single, ConvBlock)
    assert single.norm.num_batches_tracked == 0 and pooling.branches[1].norm.num_batches_tracked == 1
    x = torch.randn(1, 6, 1, 1)
    expected = F.relu(F.conv2d(x, single.conv.weight) / math.sqrt(1 + 1e-5))
    torch.testing.assert_close(single(x), expected)  # the running statistics are still 0 and 1


@pytest.mark.parametrize("stride", [8, 14, 32])
def test_setr_gives_stated_strides_with_other_patches(stride: int) -> None:
    sides = {1: (5 * stride, 7 * stride), 4: (math.ceil(5 * stride / 4), math.ceil(7 * stride / 4))}
    for name, out in (("setr_naive", stride), ("setr_pup", 1), ("setr_mla", 4)):
        decoder = build(name, strides=(stride,) * 4).eval()
        with torch.no_grad():
            logits, features = decoder(maps(decoder, 5 * stride, 7 * stride))
        assert tuple(logits.shape[2:]) == sides.get(out, (5, 7))
        assert tuple(features.shape[2:]) == sides.get(int(decoder.feature_stride), (5, 7))


def test_fcn_reads_the_last_map() -> None:
    decoder = build("fcn").eval()
    stages = maps(decoder, 64, 96)
    logits, features = decoder(stages)
    assert decoder.feature_stride == 32 and features.shape[2:] == (2, 3) and logits.shape[2:] == (2, 3)
    stages[0] += 1
    assert torch.equal(decoder(stages)[0], logits)
    one = create_decoder("fcn", channels=(12,), strides=(16,), num_classes=2, width=4)
    assert one.feature_stride == 16 and one(maps(one, 32, 32))[0].shape == (2, 2, 2, 2)


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_other_maps_than_built_for_are_refused(name: str) -> None:
    decoder = build(name)
    stages = maps(decoder, 64, 64)
    with pytest.raises(ValueError, match=rf"{name} was built for 4 maps of \(6, 8, 10, 12\) .* got 3 of"):
        decoder(stages[:3])
    with pytest.raises(ValueError, match=r"got 4 of \(12, 10, 8, 6\)"):
        decoder(stages[::-1])
    if decoder_class(name).has_auxiliary_heads:
        with pytest.raises(ValueError, match="got 3 of"):
            decoder.auxiliary(stages[:3])


@pytest.mark.parametrize("name", NAMES)
def test_values_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: width is 0; expected at least 1, published"):
        build(name, width=0)
    if build(name).needs_pyramid:
        for strides in ((16, 16, 16, 16), (2, 4, 8, 16)):
            with pytest.raises(
                ValueError, match=f"{name} wants four maps at strides .4, 8, 16, 32., .* neck"
            ):
                build(name, strides=strides)
    if name in SETR:
        for strides in (PYRAMID, (4, 4, 4, 4)):
            with pytest.raises(
                ValueError, match=f"{name} wants maps of one stride, at least 8.*{strides[-1]}"
            ):
                build(name, strides=strides)


def test_unknown_names_and_weights_without_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown decoder 'unet'; known: dmlp, dmlpv2, fcn, segformer"):
        build("unet")
    with pytest.raises(ValueError, match=r"dmlp has no auxiliary heads to weight with \(0.4,\); .* upernet"):
        build("dmlp", auxiliary_weights=(0.4,))
    with pytest.raises(ValueError, match="upernet has one auxiliary head, on the third stage; got 2 weights"):
        build("upernet", auxiliary_weights=(0.4, 0.4))
    with pytest.raises(ValueError, match="setr_mla: width is 10; its 4 maps share it equally"):
        build("setr_mla", width=10)
    for weights in ((0.4,) * 5, (-0.1,), (math.nan,)):
        with pytest.raises(
            ValueError, match="auxiliary weights are .* for 4 maps; expected at most one finite"
        ):
            build("setr_pup", auxiliary_weights=weights)
