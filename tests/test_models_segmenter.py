"""Models by name: shapes, sizes, gradients, training, and the discriminator."""

import pytest
import torch
import torch.nn.functional as F

from panoda.methods.parts.discriminator import Discriminator
from panoda.models import Segmenter, create_model
from panoda.models.deform.layers import DeformableConv, DeformableMLP


@pytest.fixture(scope="module")
def nano() -> Segmenter:
    torch.manual_seed(0)
    return create_model("trans4pass_nano", num_classes=19).eval()


# T: the sum over the released layout without BatchNorm statistics; S: T plus the repeated blocks.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("trans4pass_nano", 1_239_075), ("trans4pass_t", 15_274_427), ("trans4pass_s", 26_319_291)],
)
def test_parameter_counts(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=19)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 96)])
def test_shapes_at_any_size(nano: Segmenter, size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size)
    with torch.no_grad():
        logits, features = nano(x, return_features=True)
        assert torch.equal(nano(x), logits)
    height, width = ((s + 3) // 4 for s in size)
    assert logits.shape == (2, 19, *size) and features.shape == (2, nano.feature_channels, height, width)
    stages = nano.encoder(x)
    assert [stage.shape[1] for stage in stages] == [24, 48, 96, 160]
    assert stages[0].shape[2:] == (height, width)
    embeddings = nano.decoder.embeddings(stages)
    assert len(embeddings) == 4
    torch.testing.assert_close(embeddings[0] + embeddings[1] + embeddings[2] + embeddings[3], features)
    stride4 = F.interpolate(nano.decoder.predict(features), size=size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(stride4, logits)


def test_small_images_and_wrong_shapes_are_refused(nano: Segmenter) -> None:
    with pytest.raises(ValueError, match="31x64 pixels .* too small; .* at least 32x32"):
        nano(torch.rand(1, 3, 31, 64))
    for shape in ((3, 64, 64), (1, 1, 64, 64)):
        with pytest.raises(ValueError, match=r"expected images \(N, 3, H, W\)"):
            nano(torch.rand(shape))


def test_unknown_names_and_values_are_refused() -> None:
    with pytest.raises(ValueError, match="'resnet'; known: trans4pass_nano, trans4pass_t, trans4pass_s"):
        create_model("resnet", num_classes=19)
    for number in (0, 256):
        with pytest.raises(ValueError, match=f"num_classes is {number}; expected 1 to 255"):
            create_model("trans4pass_nano", num_classes=number)
    with pytest.raises(ValueError, match="drop_path is 1.5"):
        create_model("trans4pass_nano", num_classes=19, drop_path=1.5)


def test_norms_have_the_published_epsilons(nano: Segmenter) -> None:
    tight = {name for name, module in nano.named_modules() if getattr(module, "eps", None) == 1e-6}
    wide = {name for name, module in nano.named_modules() if getattr(module, "eps", None) == 1e-5}
    assert {"encoder.stages.0.blocks.0.norm1", "encoder.stages.3.norm"} <= tight
    assert {"encoder.patch_embed.norm", "encoder.stages.2.downsample.norm"} <= wide
    assert "encoder.stages.0.blocks.0.attn.norm" in wide


def test_every_parameter_learns_and_the_loss_falls() -> None:
    torch.manual_seed(1)
    model = create_model("trans4pass_nano", num_classes=5, drop_path=0.0)
    x = torch.rand(2, 3, 128, 128)  # stage 4 is 4x4, so its offsets may reach one pixel
    label = (x[:, 0] * 5).long().clamp(max=4)
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    losses, silent = [], []
    for _ in range(5):
        optimiser.zero_grad()
        loss = F.cross_entropy(model(x), label)
        loss.backward()
        silent.append({name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()})
        optimiser.step()
        losses.append(loss.item())
    # Zero pointwise weights hide the depthwise half of the deformable MLPs from the first step only.
    assert silent[0] == {name for name, _ in model.named_parameters() if ".depthwise." in name}
    assert not silent[1]
    assert losses[-1] < losses[0]


def test_new_deformable_layers_are_undeformed() -> None:
    torch.manual_seed(2)
    x = torch.rand(2, 4, 9, 12)
    layer = DeformableConv(4, 5, kernel_size=3, stride=2, padding=1)
    torch.testing.assert_close(layer(x), layer.proj(x), rtol=1e-5, atol=1e-5)
    mlp = DeformableMLP(4).eval()
    torch.testing.assert_close(mlp(x), mlp.act(mlp.norm(mlp.linear(x))), rtol=1e-5, atol=1e-5)


def test_offsets_are_clamped_to_a_quarter_of_the_side() -> None:
    x = torch.arange(96.0).reshape(1, 1, 8, 12)
    layer = DeformableConv(1, 1, kernel_size=1, stride=1, padding=0)
    torch.nn.init.ones_(layer.proj.weight)
    torch.nn.init.zeros_(layer.proj.bias)
    layer.offset_conv.bias.data = torch.tensor([100.0, 0.0])  # y; the shorter side is 8
    torch.testing.assert_close(layer(x)[0, 0, :6], x[0, 0, 2:])
    mlp = DeformableMLP(1).eval()
    torch.nn.init.ones_(mlp.linear.weight)
    torch.nn.init.zeros_(mlp.linear.bias)
    torch.nn.init.constant_(mlp.depthwise.weight, 1.0)
    mlp.pointwise.weight.data[1] = 100.0  # x; the longer side is 12
    expected = F.gelu(x[0, 0, :, 3:] / (1 + 1e-5) ** 0.5)
    torch.testing.assert_close(mlp(x)[0, 0, :, :9][1:7, 1:8], expected[1:7, 1:8])


def test_model_compiles_without_graph_breaks(nano: Segmenter) -> None:
    x = torch.rand(1, 3, 32, 32)
    compiled = torch.compile(nano, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), nano(x))


def test_autocast_stays_close(nano: Segmenter) -> None:
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        exact = nano(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = nano(x)
    assert (out.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_construction_touches_no_network_and_is_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was looked up on the network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    for name in ("trans4pass_nano", "trans4pass_t", "trans4pass_s"):
        torch.manual_seed(5)
        one = create_model(name, num_classes=3)
        torch.manual_seed(5)
        assert torch.equal(
            one.decoder.predict.weight, create_model(name, num_classes=3).decoder.predict.weight
        )


def test_discriminator_is_five_strided_convolutions() -> None:
    discriminator = Discriminator(13)
    convolutions = [m for m in discriminator if isinstance(m, torch.nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [64, 128, 256, 512, 1]
    assert {(c.kernel_size, c.stride) for c in convolutions} == {((4, 4), (2, 2))}
    assert [m.negative_slope for m in discriminator if isinstance(m, torch.nn.LeakyReLU)] == [0.2] * 4
    probs = torch.rand(2, 13, 64, 96).softmax(1).requires_grad_()
    out = discriminator(probs)
    assert out.shape == (2, 1, 2, 3)
    out.sum().backward()
    assert probs.grad is not None and probs.grad.any()
    with pytest.raises(ValueError, match="16x64 are too small"):
        discriminator(torch.rand(1, 13, 16, 64))
