"""Every kind of encoder keeps the interface; MiT and timm's pyramids equal independent implementations."""

import math
import re

import pytest
import timm
import torch
from torch import Tensor, nn

from panoda.models import create_model
from panoda.models.encoders.factory import create_encoder, encoder_names
from panoda.models.encoders.layers import pad_to_multiple
from panoda.models.weights.released import rename_encoder

KINDS = {
    "trans4pass_nano": (4, 8, 16, 32),
    "mit_b0": (4, 8, 16, 32),
    "pvt_v2_b0": (4, 8, 16, 32),
    "timm:convnext_atto": (4, 8, 16, 32),
    "timm:swin_tiny_patch4_window7_224": (4, 8, 16, 32),
    "timm:resnet18": (4, 8, 16, 32),
    "vit:vit_tiny_patch16_224": (16,) * 4,
    "vit:vit_small_patch14_dinov2": (14,) * 4,
    "vit:vit_tiny_patch16_dinov3_qkvb": (16,) * 4,
    "vit:beit_base_patch16_224": (16,) * 4,
}


@pytest.mark.parametrize("name", KINDS)
def test_maps_layers_and_gradients_at_an_odd_size(name: str) -> None:
    encoder = create_encoder(name, drop_path=0.0)
    assert encoder.strides == KINDS[name] and len(encoder.mean) == len(encoder.std) == 3
    maps = encoder(torch.randn(2, 3, 48, 100))
    expected = [
        (2, c, math.ceil(48 / s), math.ceil(100 / s))
        for c, s in zip(encoder.channels, encoder.strides, strict=True)
    ]
    assert [tuple(y.shape) for y in maps] == expected
    sum(y.square().mean() for y in maps).backward()
    names = [key for key, _ in encoder.named_parameters()]
    assert [key for key, p in encoder.named_parameters() if p.grad is None] == []
    layers = {encoder.layer_of(key) for key in names}
    assert layers >= set(range(encoder.num_layers - 1)) and max(layers) < encoder.num_layers
    undecayed = encoder.no_weight_decay()
    assert undecayed <= set(names)
    assert undecayed >= {key for key in names if re.search("pos_embed|token|position_bias", key)}


def test_layers_count_blocks_through_the_stages() -> None:
    for name, prefix in (("mit_b0", ""), ("pvt_v2_b0", "net."), ("trans4pass_nano", "")):
        encoder = create_encoder(name)
        depths = (1, 1, 1, 1) if "nano" in name else (2, 2, 2, 2)
        first = [1 + sum(depths[:i]) for i in range(4)]
        assert encoder.num_layers == sum(depths) + 2
        assert encoder.layer_of(f"{prefix}patch_embed.proj.weight") == 0
        for stage in range(4):
            assert encoder.layer_of(f"{prefix}stages.{stage}.blocks.0.attn.q.weight") == first[stage]
            if stage:
                assert encoder.layer_of(f"{prefix}stages.{stage}.downsample.proj.weight") == first[stage]
                assert encoder.layer_of(f"{prefix}stages.{stage - 1}.norm.weight") == first[stage] - 1
        assert encoder.layer_of(f"{prefix}stages.3.norm.weight") == sum(depths) + 1


def test_vit_layers_count_blocks() -> None:
    encoder = create_encoder("vit:vit_tiny_patch16_224", indices=(1, 3))
    assert encoder.num_layers == 4 + 2  # blocks after the last one taken are gone
    for key in ("cls_token", "pos_embed", "patch_embed.proj.weight"):
        assert encoder.layer_of(f"net.{key}") == 0
    assert [encoder.layer_of(f"net.blocks.{i}.norm1.weight") for i in range(4)] == [1, 2, 3, 4]


# SegFormer (arXiv 2105.15203), table 1a, in millions: 3.4, 13.1, 24.2, 44.0, 60.8, 81.4
MIT = {
    "b0": ((2, 2, 2, 2), (32, 64, 160, 256), 3_319_392),
    "b1": ((2, 2, 2, 2), (64, 128, 320, 512), 13_151_424),
    "b2": ((3, 4, 6, 3), (64, 128, 320, 512), 24_196_288),
    "b3": ((3, 4, 18, 3), (64, 128, 320, 512), 44_072_128),
    "b4": ((3, 8, 27, 3), (64, 128, 320, 512), 60_842_688),
    "b5": ((3, 6, 40, 3), (64, 128, 320, 512), 81_443_008),
}
TRANS4PASS = {"b1": "t", "b2": "s", "b3": "b3", "b4": "b4", "b5": "b5"}


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("size", MIT)
def test_mit_has_the_published_parameters(size: str) -> None:
    depths, channels, count = MIT[size]
    with torch.device("meta"):
        plain = create_encoder(f"mit_{size}")
        assert plain.depths == depths and plain.channels == channels and _parameters(plain) == count
        if size in TRANS4PASS:
            extra = 3 * 49 * (3 * 49 + 1)  # 147 channels of offsets and modulator: 7x7x3 weights and a bias
            assert _parameters(create_encoder(f"trans4pass_{TRANS4PASS[size]}")) == count + extra
        transformers = pytest.importorskip("transformers")
        config = transformers.SegformerConfig(depths=list(depths), hidden_sizes=list(channels))
        theirs = transformers.SegformerModel(config).state_dict()
        own = _transformers_layout(plain.state_dict())
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in theirs.items()}


def _random(module: nn.Module, seed: int = 0) -> None:
    """Weights that no test could mistake for zeros or ones."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        with torch.no_grad():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.2 * noise if parameter.ndim == 1 else 0.02 * noise)


def _transformers_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our MiT names as those of transformers' SegformerModel; keys and values are one matrix of ours."""
    names = (
        (r"^patch_embed\.proj", "stages.0.patch_embeddings.proj"),
        (r"^patch_embed\.norm", "stages.0.patch_embeddings.layer_norm"),
        (r"\.downsample\.proj", ".patch_embeddings.proj"),
        (r"\.downsample\.norm", ".patch_embeddings.layer_norm"),
        (r"^(stages\.\d)\.norm\.", r"\1.layer_norm."),
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.norm2\.", ".layernorm_after."),
        (r"\.attn\.q\.", ".attention.q_proj."),
        (r"\.attn\.proj\.", ".attention.o_proj."),
        (r"\.attn\.sr\.", ".attention.sequence_reduction.sequence_reduction."),
        (r"\.attn\.norm\.", ".attention.sequence_reduction.layer_norm."),
        (r"\.mlp\.dwconv\.", ".mlp.dwconv.dwconv."),
    )
    out = {}
    for key, value in state.items():
        for pattern, replacement in names:
            key = re.sub(pattern, replacement, key)
        if ".attn.kv." in key:
            for part, half in zip(("k", "v"), value.chunk(2), strict=True):
                out[key.replace(".attn.kv.", f".attention.{part}_proj.")] = half
        else:
            out[key] = value
    return out


@pytest.mark.parametrize("size", [(64, 96), (50, 75)])
def test_mit_equals_transformers(size: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers")
    own = create_encoder("mit_b0").eval()
    _random(own)
    other = transformers.SegformerModel(transformers.SegformerConfig()).eval()  # the default shape is B0
    other.load_state_dict(_transformers_layout(own.state_dict()))
    for name, module in other.named_modules():
        # transformers leaves these norms at torch's 1e-5; the released MiT has 1e-6 there
        if re.search(r"layernorm_before|layernorm_after|^stages\.\d\.layer_norm", name):
            module.eps = 1e-6
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = other(x, output_hidden_states=True).hidden_states
        found = own(x)
    assert len(found) == len(expected) == 4
    for one, another in zip(found, expected, strict=True):
        torch.testing.assert_close(one, another, atol=1e-4, rtol=1e-4)


def test_mit_equals_the_released_code_as_packaged() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    other = smp.encoders.get_encoder("mit_b1", weights=None).eval()
    _random(other)
    own = create_encoder("mit_b1").eval()
    state = rename_encoder({f"encoder.{key}": value for key, value in other.state_dict().items()})
    own.load_state_dict({key.removeprefix("encoder."): value for key, value in state.items()})
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for one, another in zip(own(x), other(x)[-4:], strict=True):
            torch.testing.assert_close(one, another, atol=1e-4, rtol=1e-4)


def test_trans4pass_is_the_model_that_checkpoints_know() -> None:
    for name in ("trans4pass_nano", "trans4pass_t"):
        known = create_model(name, num_classes=3).encoder.state_dict()
        own = create_encoder(name).state_dict()
        assert {key: value.shape for key, value in own.items()} == {k: v.shape for k, v in known.items()}


@pytest.mark.parametrize("name", ["resnet18", "pvt_v2_b0", "mobilenetv3_small_100"])
def test_pyramid_equals_timms_features(name: str) -> None:
    encoder = create_encoder(name if name.startswith("pvt") else f"timm:{name}").eval()
    _random(encoder)
    other = timm.create_model(name, features_only=True, feature_cls="fx", pretrained=False).eval()
    missing, _ = other.graph_module.load_state_dict(encoder.net.state_dict(), strict=False)
    assert missing == []
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for one, another in zip(encoder(x), other(x)[-4:], strict=True):
            torch.testing.assert_close(one, another, atol=1e-5, rtol=1e-5)


def test_names_of_timms_weights_are_kept() -> None:
    for name in ("timm:convnext_atto", "pvt_v2_b0", "vit:vit_tiny_patch16_224"):
        encoder = create_encoder(name, drop_path=0.0)
        bare = name.rpartition(":")[2]
        theirs = timm.create_model(bare, pretrained=False).state_dict()
        own = {key.removeprefix("net."): value for key, value in encoder.state_dict().items()}
        assert {key: theirs[key].shape for key in own} == {key: value.shape for key, value in own.items()}
        assert all(key.split(".")[0] in ("head", "norm", "fc_norm") for key in theirs.keys() - own.keys())


def test_padding_repeats_the_edge_or_goes_around() -> None:
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert pad_to_multiple(x, 1) is x
    straight = torch.tensor([[0.0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]])
    around = torch.tensor([[0.0, 1, 2, 0], [3, 4, 5, 3], [3, 4, 5, 3], [3, 4, 5, 3]])
    assert torch.equal(pad_to_multiple(x, 4)[0, 0], straight)
    assert torch.equal(pad_to_multiple(x, 4, wrap=True)[0, 0], around)


def test_drop_path_grows_to_the_last_block() -> None:
    for name in ("mit_b0", "pvt_v2_b0", "timm:convnext_atto", "vit:vit_tiny_patch16_224"):
        rates = [
            m.drop_prob for m in create_encoder(name, drop_path=0.3).modules() if hasattr(m, "drop_prob")
        ]
        assert max(rates) == rates[-1] == pytest.approx(0.3) and sorted(rates) == rates


def test_indices_choose_the_maps() -> None:
    assert create_encoder("timm:resnet18", indices=(0, 3)).strides == (2, 16)
    for indices in ((3, 1), (1, 5), (-1, 2), ()):
        with pytest.raises(ValueError, match="do not fit 'resnet18'.* 0 to 4, of strides"):
            create_encoder("timm:resnet18", indices=indices)


def test_names_and_options_that_do_not_fit_are_refused() -> None:
    assert {"trans4pass_b5", "mit_b0", "pvt_v2_b5"} <= set(encoder_names())
    for name, options, message in (
        ("mit_b7", {}, "unknown encoder 'mit_b7'; known: trans4pass_nano"),
        ("vit:", {}, "unknown encoder 'vit:'"),
        ("timm:convnext_attoo", {}, "no model 'convnext_attoo'; near it: convnext"),
        ("vit:vit_base_patch16_224.foo", {}, r"Invalid pretrained tag.*vit_base_patch16_224\.mae"),
        ("vit:resnet18", {}, "is a ResNet"),
        ("timm:vit_tiny_patch16_224", {}, "no pyramid, all its strides are 16; try 'vit:vit_tiny"),
        ("timm:hiera_tiny_224", {}, "takes no images of 64x96 pixels"),
        ("mit_b0", {"drop_path": 1.0}, "drop_path is 1.0"),
        ("mit_b0", {"wrap": True}, "wrap=True is for plain ViTs"),
        ("mit_b0", {"indices": (1, 2)}, "always gives its four stages"),
    ):
        with pytest.raises(ValueError, match=message):
            create_encoder(name, **options)
