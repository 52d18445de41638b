"""Plain ViTs against timm's own at native and other sizes, and positions that close around the circle."""

import copy
import math

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from panoda.models.encoders import vit
from panoda.models.encoders.factory import create_encoder
from panoda.models.encoders.positions import Displacements, resize_table, round_rotation, sincos_table
from panoda.models.encoders.timm_models import build

# What each stands for: learned; class and register tokens outside the table; EVA's and DINOv3's rotations
# (with and without a table); learned rotations; relative positions.
KINDS = (
    "vit_tiny_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "eva02_tiny_patch14_224",
    "vit_tiny_patch16_dinov3_qkvb",
    "vit_small_patch16_rope_mixed_224",
    "beit_base_patch16_224",
)
SMALL = {"embed_dim": 96, "num_heads": 3, "depth": 3}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ViT narrow and of three blocks, what it is otherwise left alone."""
    monkeypatch.setattr(vit, "build", lambda name, **wanted: build(name, **wanted, **SMALL))


def _random(module: nn.Module) -> None:
    """Weights that no test could mistake for zeros or ones, position tables above all."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            noise = torch.randn(parameter.shape, generator=generator)
            if "rope" in name:
                continue
            strong = "pos" in name or "token" in name or "gamma" in name
            parameter.add_(noise if strong else (0.2 if parameter.ndim == 1 else 0.03) * noise)


def _pair(name: str, size: tuple[int, int] | None = None) -> tuple[nn.Module, nn.Module]:
    """Our encoder, and timm's network with the same weights, for images of ``size`` or its own."""
    encoder = create_encoder(f"vit:{name}", indices=(0, 1)).eval()
    _random(encoder)
    other = timm.create_model(name, pretrained=False, num_classes=0, **SMALL).eval()
    other.prune_intermediate_layers([0, 1], prune_norm=True)
    other.load_state_dict(encoder.net.state_dict())
    if size is not None:
        other.set_input_size(img_size=size)
    return encoder, other


def _compare(encoder: nn.Module, other: nn.Module, size: tuple[int, int]) -> None:
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = other.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
        for one, another in zip(encoder(x), expected, strict=True):
            assert another.abs().mean() > 0.1
            torch.testing.assert_close(one, another, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", [name for name in KINDS if "dinov2" not in name])  # its own is 518 x 518
def test_native_size_equals_timm(name: str) -> None:
    encoder, other = _pair(name)
    height, width = encoder.native
    assert height == width
    _compare(encoder, other, (height * encoder.patch, width * encoder.patch))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("grid", [(4, 9), (14, 6)])
def test_another_size_equals_timm_set_to_it(name: str, grid: tuple[int, int]) -> None:
    patch = 14 if "patch14" in name else 16
    size = (grid[0] * patch, grid[1] * patch)
    encoder, other = _pair(name, size)
    _compare(encoder, other, size)


def test_blocks_are_counted_from_zero() -> None:
    assert create_encoder("vit:vit_tiny_patch16_224").indices == (3, 5, 7, 11)
    with torch.device("meta"):
        large = create_encoder("vit:vit_large_patch16_224")
        huge = create_encoder("vit:vit_huge_patch14_224.mae")
    assert large.indices == (9, 14, 19, 23) and large.channels == (1024,) * 4
    assert huge.indices == (7, 15, 23, 31) and huge.strides == (14,) * 4
    for indices in ((3, 1), (1, 12), (-1, 2), ()):
        with pytest.raises(ValueError, match="expected increasing blocks 0 to 11"):
            create_encoder("vit:vit_tiny_patch16_224", indices=indices)


def test_a_size_that_the_patch_does_not_divide_repeats_the_edge() -> None:
    encoder = create_encoder("vit:vit_tiny_patch16_224", indices=(1,)).eval()
    x = torch.randn(1, 3, 48, 100)
    padded = torch.cat((x, x[..., -1:].expand(-1, -1, -1, 12)), dim=3)
    with torch.no_grad():
        assert torch.equal(encoder(x)[0], encoder(padded)[0])


@pytest.mark.parametrize("new", [(7, 28), (14, 14), (30, 9)])
def test_straight_table_is_timms(new: tuple[int, int]) -> None:
    table = torch.randn(1, 1 + 14 * 14, 8)
    expected = resample_abs_pos_embed(table, new_size=list(new), num_prefix_tokens=1)
    assert torch.equal(resize_table(table, (14, 14), new, prefix=1), expected)
    assert torch.equal(resize_table(table, (14, 14), new, prefix=1, wrap=True)[:, :1], table[:, :1])


def test_round_table_is_periodic() -> None:
    def resized(body: Tensor, *, wrap: bool) -> Tensor:
        out = resize_table(body.flatten(1, 2), (4, 6), (5, 15), prefix=0, wrap=wrap)
        return out.unflatten(1, (5, 15))

    body = torch.randn(1, 4, 6, 3)
    for wrap in (True, False):
        # 2 of 6 columns are 5 of 15
        rolled, expected = resized(body.roll(2, 2), wrap=wrap), resized(body, wrap=wrap).roll(5, 2)
        assert torch.allclose(rolled, expected, atol=1e-6) == wrap
    wave = torch.sin(2 * math.pi * (torch.arange(6) + 0.5) / 6).view(1, 1, 6, 1).expand(1, 4, 6, 3)
    exact = torch.sin(2 * math.pi * (torch.arange(15) + 0.5) / 15).view(1, 1, 15, 1)
    assert (resized(wave, wrap=True) - exact).abs().max() < 0.06
    assert (resized(wave, wrap=False) - exact).abs().max() > 0.1


def test_sincos_table_is_maes() -> None:
    table = sincos_table((2, 3), 8, prefix=1)
    assert table.shape == (1, 7, 8) and not table[0, 0].any()
    y, x = 1, 2
    expected = [f(v / s) for v in (x, y) for f in (math.sin, math.cos) for s in (1, 100)]
    assert table[0, 1 + y * 3 + x].tolist() == pytest.approx(expected, abs=1e-6)
    encoder = create_encoder("vit:vit_base_patch16_224.mae", indices=(0,))
    assert torch.equal(encoder.net.pos_embed, sincos_table((14, 14), 768, prefix=1))
    assert not encoder.net.pos_embed.requires_grad


def test_nearest_way_around_the_circle() -> None:
    # One head; the entry of displacement (dy, dx) in a 3x4 window is 10 dy + dx.
    dy, dx = torch.meshgrid(torch.arange(-2.0, 3), torch.arange(-3.0, 4), indexing="ij")
    table = torch.cat(((10 * dy + dx).flatten(), torch.tensor([70.0, 80, 90]))).view(-1, 1)
    for wrap, expected in (
        (False, [[0, -1, -2, -3], [1, 0, -1, -2], [2, 1, 0, -1], [3, 2, 1, 0]]),
        (True, [[0, -1, -2, 1], [1, 0, -1, -2], [-2, 1, 0, -1], [-1, -2, 1, 0]]),
    ):
        bias = Displacements.between((3, 4), (3, 4), wrap=wrap).bias(table, (3, 4))[0, 0]
        assert bias.shape == (13, 13)
        row = torch.tensor(expected, dtype=torch.float32)
        assert torch.equal(bias[1:5, 1:5], row) and torch.equal(bias[5:9, 1:5], row + 10)
        assert bias[0, 0] == 90 and set(bias[0, 1:].tolist()) == {70} and set(bias[1:, 0].tolist()) == {80}


def test_wider_circle_stretches_the_table_to_the_opposite_side() -> None:
    table = torch.zeros(5 * 13 + 3, 1)
    table[:65] = torch.arange(-6.0, 7).repeat(5).view(-1, 1)  # dx itself, in a window of 3x7
    bias = Displacements.between((3, 7), (3, 24), wrap=True).bias(table, (3, 7))[0, 0, 1, 1:25]
    # Patch 0 looks at 0..23: neighbours keep their places, the table's end lies at the opposite side.
    assert bias[0] == 0 and bias[1] == -1 and bias[23] == 1
    assert bias[12].item() == pytest.approx(-6, abs=1e-3)
    assert (bias[1:13].diff() < 0).all() and (bias[13:].diff() < 0).all() and bias[13] > 5
    torch.testing.assert_close(bias[13:], -bias[1:12].flip(0))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224"])
def test_rolling_a_panorama_rolls_its_features(name: str) -> None:
    x = torch.randn(1, 3, 48, 160)
    for wrap in (True, False):
        encoder = create_encoder(f"vit:{name}", indices=(0, 2), wrap=wrap).eval()
        _random(encoder)
        if encoder.net.pos_embed is not None:  # constant along rows
            body = encoder.net.pos_embed.data[:, 1:].unflatten(1, encoder.native)
            body.copy_(body[:, :, :1].expand_as(body).clone())
        with torch.no_grad():
            straight, rolled = encoder(x)[1], encoder(x.roll(3 * 16, 3))[1]
        equal = torch.allclose(straight.roll(3, 3), rolled, atol=1e-4)
        # Relative positions see the seam unless they close; a table constant in x never does.
        assert equal == (wrap or name == "vit_tiny_patch16_224")


def test_round_rotation_turns_by_the_way_around_the_circle() -> None:
    rope = create_encoder("vit:vit_tiny_patch16_dinov3_qkvb", indices=(0,)).net.rope
    for wrap in (True, False):
        table = round_rotation(rope, (3, 10)) if wrap else rope.get_embed([3, 10])
        sine, cosine = table.unflatten(0, (3, 10)).chunk(2, dim=2)
        # Turn of column i against column j, as an angle's cosine and sine, and down the rows
        for turn in (
            cosine[:, :, None] * cosine[:, None] + sine[:, :, None] * sine[:, None],
            sine[:, :, None] * cosine[:, None] - cosine[:, :, None] * sine[:, None],
        ):
            assert torch.allclose(turn.roll((3, 3), (1, 2)), turn, atol=1e-5) == wrap
    # Heights keep their turns: the first half of the 32 angles, which come twice.
    straight = rope.get_embed([3, 10])
    vertical = (torch.arange(128) % 32) < 16
    assert torch.equal(round_rotation(rope, (3, 10))[:, vertical], straight[:, vertical])


def test_wrap_needs_a_rule() -> None:
    with pytest.raises(ValueError, match="wrap=True has no rule for 'eva02_tiny_patch14_224'"):
        create_encoder("vit:eva02_tiny_patch14_224", wrap=True)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["vit_tiny_patch16_dinov3_qkvb", "beit_base_patch16_224"])
def test_what_inference_keeps_serves_training_and_copies(name: str) -> None:
    encoder = create_encoder(f"vit:{name}", indices=(0, 1), drop_path=0.0)
    x = torch.randn(1, 3, 32, 64)
    with torch.inference_mode():
        expected = encoder(x)[1].clone()
    assert len(encoder._cache) == 1
    found = encoder.train()(x)[1]
    torch.testing.assert_close(found, expected)  # no random shift of positions in training
    found.sum().backward()
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.5)
        assert not torch.allclose(encoder(x)[1], found)
        torch.testing.assert_close(other(x)[1], found)
    for width in range(2, 30):
        encoder(torch.randn(1, 3, 32, 16 * width))
    assert len(encoder._cache) <= 8


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["vit_tiny_patch16_dinov3_qkvb", "beit_base_patch16_224"])
@pytest.mark.parametrize("compiled", [False, True])
def test_exports_and_compiles_at_a_size_seen_before(name: str, compiled: bool) -> None:
    encoder = create_encoder(f"vit:{name}", indices=(0,)).eval()
    _random(encoder)
    x = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        expected = encoder(x)[0]
        if compiled:
            found = torch.compile(encoder, fullgraph=True, backend="aot_eager")(x)[0]
        else:
            exported = torch.export.export(encoder, (x,))
            assert len(exported.graph.nodes) < 150  # positions are constants, not computed in the graph
            found = exported.module()(x)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("small")
def test_a_trace_leaves_nothing_behind() -> None:
    encoder = create_encoder("vit:vit_tiny_patch16_dinov3_qkvb", indices=(0,)).eval()
    x = torch.randn(1, 3, 32, 64)
    found = torch.export.export(encoder, (x,)).module()(x)[0]
    assert not encoder._cache
    torch.testing.assert_close(found, encoder(x)[0])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", KINDS)
def test_half_precision_stays_near(name: str) -> None:
    encoder = create_encoder(f"vit:{name}", indices=(0,)).eval()
    _random(encoder)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        exact = encoder(x)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            near = encoder(x)[0]
    assert (near.float() - exact).abs().mean() < 0.02 * exact.abs().mean()
