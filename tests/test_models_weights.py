"""Reading released and ImageNet weights: every layout, every remap, every refusal."""

import re
from pathlib import Path

import pytest
import torch
from parity import RELEASED, filled, released_layout
from safetensors.torch import save_file
from torch import Tensor

from panoda.models import CheckpointError, Segmenter, create_model
from panoda.models.decoders.dmlpv2 import DMLPv2Decoder
from panoda.models.weights.importing import import_state
from panoda.models.weights.nesting import find_weights
from panoda.models.weights.released import (
    drop_classifier,
    read_state_dict,
    rename_decoder,
    rename_encoder,
    unify_supervised,
)

# Released key -> ours, by hand.
ENCODER_KEYS = {
    "encoder.patch_embed1.proj.weight": "encoder.patch_embed.proj.weight",
    "encoder.patch_embed1.offset_conv.bias": "encoder.patch_embed.offset_conv.bias",
    "encoder.patch_embed1.norm.weight": "encoder.patch_embed.norm.weight",
    "encoder.patch_embed4.proj.bias": "encoder.stages.3.downsample.proj.bias",
    "encoder.block1.0.attn.sr.weight": "encoder.stages.0.blocks.0.attn.sr.weight",
    "encoder.block3.17.mlp.dwconv.dwconv.bias": "encoder.stages.2.blocks.17.mlp.dwconv.bias",
    "encoder.norm2.bias": "encoder.stages.1.norm.bias",
}
DECODER_KEYS = {
    "dede_head.head1.sdp.offset_conv.weight": "decoder.blocks.0.project.offset_conv.weight",
    "dede_head.head2.sdp.norm.running_var": "decoder.blocks.1.project.norm.running_var",
    "dede_head.head3.h_mlp.weight": "decoder.blocks.2.mlp1.linear.weight",
    "dede_head.head3.w_mlp.bias": "decoder.blocks.2.mlp2.linear.bias",
    "dede_head.head4.h_mlp.offset_modulator_conv.depthwise.weight": "decoder.blocks.3.mlp1.depthwise.weight",
    "dede_head.head4.w_mlp.offset_modulator_conv.pointwise.weight": "decoder.blocks.3.mlp2.pointwise.weight",
    "dede_head.head4.w_mlp.norm.num_batches_tracked": "decoder.blocks.3.mlp2.norm.num_batches_tracked",
    "dede_head.head1.c_mlp.weight": "decoder.blocks.0.mix.weight",
    "dede_head.head1.proj.bias": "decoder.blocks.0.out.bias",
    "dede_head.pred.weight": "decoder.predict.weight",
    "dede_head.head1.dmlp.weight": "decoder.blocks.0.mlp.linear.weight",
    "dede_head.head2.dmlp.norm.running_mean": "decoder.blocks.1.mlp.norm.running_mean",
    "dede_head.head3.dmlp.offset_modulator_conv.pointwise.weight": "decoder.blocks.2.mlp.pointwise.weight",
    "dede_head.head4.cmlp1.gamma": "decoder.blocks.3.channel1.gamma",
    "dede_head.head1.cmlp2.fc2.bias": "decoder.blocks.0.channel2.fc2.bias",
    "dede_head.head2.cmlp1.dwconv.dwconv.weight": "decoder.blocks.1.channel1.depthwise.weight",
    "dede_head.head3.cmlp2.se.conv_reduce.bias": "decoder.blocks.2.channel2.se.fc1.bias",
    "dede_head.head4.cmlp1.se.conv_expand.weight": "decoder.blocks.3.channel1.se.fc2.weight",
    "dede_head.head1.norm1.weight": "decoder.blocks.0.norm.weight",
}


def released(model: Segmenter) -> dict[str, Tensor]:
    """The model's tensors under released names (the inverse of the import)."""
    back = [
        (r"^encoder\.patch_embed\.", "encoder.patch_embed1."),
        (r"^encoder\.stages\.(\d)\.downsample\.", "encoder.patch_embed{}."),
        (r"^encoder\.stages\.(\d)\.blocks\.", "encoder.block{}."),
        (r"^encoder\.stages\.(\d)\.norm\.", "encoder.norm{}."),
        (r"^decoder\.predict\.", "dede_head.pred."),
        (r"^decoder\.blocks\.(\d)\.project\.", "dede_head.head{}.sdp."),
        (r"^decoder\.blocks\.(\d)\.mix\.", "dede_head.head{}.c_mlp."),
        (r"^decoder\.blocks\.(\d)\.out\.", "dede_head.head{}.proj."),
        (r"^decoder\.blocks\.(\d)\.mlp1\.(?:linear\.)?", "dede_head.head{}.h_mlp."),
        (r"^decoder\.blocks\.(\d)\.mlp2\.(?:linear\.)?", "dede_head.head{}.w_mlp."),
    ]
    found = {}
    for key, value in model.state_dict().items():
        for pattern, name in back:
            key = re.sub(pattern, lambda m, n=name: n.format(int(m[1]) + 1 if m.groups() else ""), key)
        key = key.replace("mlp.dwconv.", "mlp.dwconv.dwconv.")
        key = re.sub(r"_mlp\.(depthwise|pointwise)", r"_mlp.offset_modulator_conv.\1", key)
        found[key] = value
    return found


def small_layout() -> list[tuple[str, list[int]]]:
    """The layout of trans4pass_s, made from that of T by repeating its blocks."""
    layout = released_layout("trans4pass_t")
    result = []
    for key, shape in layout:
        found = re.match(r"encoder\.block(\d)\.(\d)\.(.*)", key)
        if found is None:
            result.append((key, shape))
        elif found[2] == "0":
            depth = {"1": 3, "2": 4, "3": 6, "4": 3}[found[1]]
            result += [(f"encoder.block{found[1]}.{i}.{found[3]}", shape) for i in range(depth)]
    return result


def equal(model: Segmenter, other: Segmenter) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.fixture(scope="module")
def source() -> Segmenter:
    torch.manual_seed(3)
    model = create_model("trans4pass_nano", num_classes=13)
    model.load_state_dict({key: torch.rand(value.shape) for key, value in model.state_dict().items()})
    return model


@pytest.fixture
def target() -> Segmenter:
    torch.manual_seed(4)
    return create_model("trans4pass_nano", num_classes=13)


def test_remaps_name_by_name() -> None:
    ones = {key: torch.ones(1) for key in (*ENCODER_KEYS, *DECODER_KEYS)}
    assert list(rename_encoder(ones)) == [*ENCODER_KEYS.values(), *DECODER_KEYS]
    assert list(rename_decoder(ones)) == [*ENCODER_KEYS, *DECODER_KEYS.values()]
    one = torch.ones(1)
    supervised = {"backbone.norm1.bias": one, "decode_head.pred.bias": one, "x": one}
    assert list(unify_supervised(supervised)) == ["encoder.norm1.bias", "dede_head.pred.bias", "x"]
    assert list(drop_classifier({"head.weight": one, "norm4.bias": one})) == ["norm4.bias"]
    assert list(find_weights({"state_dict": {"module.a": torch.ones(1)}, "epoch": 3}).tensors) == ["a"]
    assert list(find_weights({"module.a": torch.ones(1), "b": torch.ones(1)}).tensors) == ["module.a", "b"]


def load_imported(model: Segmenter, content: dict[str, object]) -> None:
    """A released checkpoint into a model that has the same layers."""
    model.load_state_dict(import_state(content, source="x", name="x").tensors)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("supervised", [False, True])
def test_every_layout_loads(
    source: Segmenter, target: Segmenter, supervised: bool, parallel: bool, nested: bool
) -> None:
    state = released(source)
    if supervised:
        state = {
            k.replace("encoder.", "backbone.").replace("dede_head.", "decode_head."): v
            for k, v in state.items()
        }
    if parallel:
        state = {f"module.{key}": value for key, value in state.items()}
    load_imported(target, {"state_dict": state, "epoch": 7} if nested else state)
    assert equal(source, target)


@pytest.mark.skipif(not RELEASED.is_dir(), reason="the released fixtures are not at hand")
def test_released_layouts_of_t_and_s_fit() -> None:
    for name, layout in (("trans4pass_t", released_layout("trans4pass_t")), ("trans4pass_s", small_layout())):
        state = filled(layout)
        model = create_model(name, num_classes=19)
        assert set(released(model)) == set(state)
        load_imported(model, state)
        last = model.encoder.stages[2].blocks[-1].mlp.dwconv.weight
        depth = len(model.encoder.stages[2].blocks)
        assert torch.equal(last, state[f"encoder.block3.{depth - 1}.mlp.dwconv.dwconv.weight"])
        assert torch.equal(model.decoder.blocks[1].mlp2.linear.bias, state["dede_head.head2.w_mlp.bias"])
    plus = filled(released_layout("trans4pass_plus_t"))
    load_imported(with_dmlpv2("trans4pass_t", 13), plus)


def with_dmlpv2(name: str, num_classes: int) -> Segmenter:
    """A registered encoder with the decoder of Trans4PASS+."""
    model = create_model(name, num_classes=num_classes)
    decoder = DMLPv2Decoder(model.encoder.channels, num_classes=num_classes, width=model.decoder.width)
    return Segmenter(model.encoder, decoder, name=name)


def test_one_message_lists_all_that_does_not_fit(source: Segmenter) -> None:
    state = released(source)
    del state["dede_head.head2.proj.bias"]
    state["auxiliary.weight"] = torch.ones(1)
    state["dede_head.head1.proj.weight"] = torch.ones(3, 64)
    with pytest.raises(CheckpointError) as caught:
        import_state(state, source="x", name="x")
    message = str(caught.value)
    assert "1 missing: decoder.blocks.1.out.bias" in message
    assert "1 unexpected: auxiliary.weight" in message
    assert "decoder.blocks.0.out.weight is (3, 64), expected (64, 64)" in message


def test_foreign_dictionaries_are_refused() -> None:
    for content, message in (
        ({"conv1.weight": torch.ones(3)}, "not recognised"),
        ({"conv1.weight": torch.ones(3), "epoch": 3}, "these entries are no tensors: epoch"),
        ({"state_dict": {}}, "it is empty"),
    ):
        with pytest.raises(CheckpointError, match=message):
            import_state(content, source="x", name="x")


def test_files_are_read_or_refused_by_name(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.arange(2000.0)}
    torch.save({"state_dict": tensors, "epoch": 2}, tmp_path / "w.pth")
    save_file(tensors, tmp_path / "w.safetensors")
    assert torch.equal(read_state_dict(tmp_path / "w.pth")["state_dict"]["a.weight"], tensors["a.weight"])
    assert torch.equal(read_state_dict(tmp_path / "w.safetensors")["a.weight"], tensors["a.weight"])
    for kind in (FileNotFoundError, CheckpointError):
        with pytest.raises(kind, match="none.pth: no such weights file"):
            read_state_dict(tmp_path / "none.pth")
    for name in ("w.pth", "w.safetensors"):
        cut = tmp_path / f"cut{Path(name).suffix}"
        data = (tmp_path / name).read_bytes()
        for share in (0.0, 0.3, 0.95):
            cut.write_bytes(data[: int(share * len(data))])
            with pytest.raises(CheckpointError, match=f"{cut.name}: "):
                read_state_dict(cut)
        cut.write_text("an error page, not weights\n")
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            read_state_dict(cut)
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    with pytest.raises(CheckpointError, match="expected a dictionary of tensors, found Tensor"):
        read_state_dict(tmp_path / "tensor.pth")


def test_pickled_objects_are_not_opened(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "code": Path("x")}, tmp_path / "objects.pth")
    with pytest.raises(CheckpointError, match="more than tensors.*not opened for safety"):
        read_state_dict(tmp_path / "objects.pth")
