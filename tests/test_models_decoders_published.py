"""Decoders against other implementations: outputs with shared weights, parameter counts."""

import numpy as np
import pytest
import torch
from decoder_numbers import CLASSES, SETR, case, setr_results
from parity import OWN
from torch import nn

from panoda.models import create_model
from panoda.models.core.decoders import create_decoder
from panoda.models.core.head import PYRAMID
from panoda.models.decoders.dmlpv2 import ChannelMLP, DMLPv2Decoder
from panoda.models.decoders.upernet import UPerNetDecoder
from panoda.models.deform.layers import DeformableConv, DeformableMLP

CHANNELS = (6, 8, 10, 12)


@pytest.mark.parametrize("name", SETR)
def test_setr_gives_the_numbers_of_mmsegmentation(name: str) -> None:
    stored = np.load(OWN / "setr.npz")
    found = setr_results(name)
    assert set(found) == {key for key in stored.files if key.startswith(name)}
    for key, value in found.items():
        np.testing.assert_allclose(value.numpy(), stored[key], rtol=0, atol=1e-9, err_msg=key)


def test_dmlpv2_gives_the_numbers_of_the_released_operations() -> None:
    stored = np.load(OWN / "dmlpv2.npz")
    decoder, stages = case("dmlpv2")
    assert isinstance(decoder, DMLPv2Decoder)
    with torch.no_grad():
        found = {"decoder_logits": decoder(stages)[0]}
        for number, embedding in enumerate(decoder.embeddings(stages), start=1):
            found[f"decoder_embed{number}"] = embedding[:, :, ::3, ::3]
    assert set(found) == {key for key in stored.files if not key.endswith("_of_t")}
    for key, value in found.items():
        np.testing.assert_allclose(value.numpy(), stored[key], rtol=0, atol=1e-9, err_msg=key)


def copy_blocks(ours: nn.Module, theirs: nn.Module) -> None:
    """Our weights into another implementation whose modules come in the same order."""
    own = [m for m in ours.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.BatchNorm2d)]
    other = [m for m in theirs.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.BatchNorm2d)]
    for mine, yours in zip(own, other, strict=True):
        yours.load_state_dict(mine.state_dict())


def test_segformer_equals_transformers() -> None:
    segformer = pytest.importorskip("transformers.models.segformer.modeling_segformer")
    config = segformer.SegformerConfig(
        hidden_sizes=CHANNELS, decoder_hidden_size=8, num_labels=CLASSES, num_encoder_blocks=4
    )
    decoder, stages = case("segformer")
    head = segformer.SegformerDecodeHead(config).double().eval()
    copy_blocks(decoder, head)
    theirs = [stage.clone().requires_grad_() for stage in stages]
    ours = [stage.requires_grad_() for stage in stages]
    logits = decoder(ours)[0]
    torch.testing.assert_close(logits, head(theirs), rtol=0, atol=1e-10)
    logits.square().sum().backward()
    head(theirs).square().sum().backward()
    for mine, yours in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, yours.grad, rtol=0, atol=1e-9)
    assert head.linear_fuse.weight.grad is not None
    torch.testing.assert_close(decoder.fuse.conv.weight.grad, head.linear_fuse.weight.grad, rtol=0, atol=1e-9)


def test_upernet_and_fcn_equal_transformers() -> None:
    upernet = pytest.importorskip("transformers.models.upernet.modeling_upernet")
    options = {"hidden_size": 8, "num_labels": CLASSES, "auxiliary_concat_input": False}
    config = upernet.UperNetConfig(**options, auxiliary_channels=4, auxiliary_num_convs=1)
    decoder, stages = case("upernet", auxiliary=True)
    assert isinstance(decoder, UPerNetDecoder)
    head = upernet.UperNetHead(config, in_channels=CHANNELS).double().eval()
    head.classifier.load_state_dict(decoder.predict.state_dict())
    copy_blocks(decoder.pooling.branches, head.psp_modules)
    copy_blocks(decoder.pooling.fuse, head.bottleneck)
    copy_blocks(decoder.laterals, head.lateral_convs)
    copy_blocks(decoder.smooth, head.fpn_convs)
    copy_blocks(decoder.fuse, head.fpn_bottleneck)
    with torch.no_grad():
        torch.testing.assert_close(decoder(stages)[0], head(stages), rtol=0, atol=1e-10)
    auxiliary = upernet.UperNetFCNHead(config, in_channels=CHANNELS).double().eval()
    copy_blocks(decoder.heads, auxiliary)
    ((weight, logits),) = decoder.auxiliary(stages)
    assert weight == 0.4
    torch.testing.assert_close(logits, auxiliary(stages), rtol=0, atol=1e-10)

    config = upernet.UperNetConfig(**options, auxiliary_channels=8, auxiliary_num_convs=2)
    fcn, stages = case("fcn")
    head = upernet.UperNetFCNHead(config, in_channels=CHANNELS, in_index=3).double().eval()
    copy_blocks(fcn, head)
    with torch.no_grad():
        torch.testing.assert_close(fcn(stages)[0], head(stages), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "published"), [("trans4pass_t", 13.95), ("trans4pass_s", 24.98)])
def test_published_parameter_counts_leave_out_what_a_profiler_does_not_call(
    name: str, published: float
) -> None:
    """13.95M and 24.98M are Trans4PASS+ without the layers a module-wise profiler cannot see."""
    with torch.device("meta"):
        encoder = create_model(name, num_classes=19).encoder
        decoder = create_decoder("dmlpv2", channels=encoder.channels, strides=PYRAMID, num_classes=19)
    total, unseen = 0, 0
    for module in (*encoder.modules(), *decoder.modules()):
        total += sum(p.numel() for p in module.parameters(recurse=False))
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):  # without a rule
            unseen += sum(p.numel() for p in module.parameters())
        elif isinstance(module, DeformableConv):  # its weights go to the operator, the module is not called
            unseen += sum(p.numel() for p in module.proj.parameters())
        elif isinstance(module, DeformableMLP):
            unseen += sum(p.numel() for p in module.linear.parameters())
        elif isinstance(module, ChannelMLP):  # a bare parameter
            unseen += module.gamma.numel()
    assert total == {"trans4pass_t": 15_217_339, "trans4pass_s": 26_262_203}[name]
    assert round((total - unseen) / 1e6, 2) == published
