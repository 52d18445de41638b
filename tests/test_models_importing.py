"""Checkpoints of plain ViTs in the layouts of their authors: recognised, cut down, resized, refused.

They are made from the keys and shapes of our own encoders by inverse renaming; the large ones take no memory.
"""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor

from panoda.models import CheckpointError
from panoda.models.encoders.positions import sincos_table
from panoda.models.weights.catalogue import VITS, layout, vits_of
from panoda.models.weights.importing import expand_shared_table, import_state
from panoda.models.weights.recognise import recognise

TINY = "vit:vit_tiny_patch16_224.augreg_in21k"


def light(encoder: str) -> dict[str, Tensor]:
    """timm's keys and shapes of an encoder of any size, without the memory of it."""
    return {
        key.removeprefix("encoder.net."): torch.zeros(1).expand(shape)
        for key, shape in layout(encoder).items()
    }


def test_mae_pretraining_loses_its_decoder() -> None:
    encoder = "vit:vit_base_patch16_224.mae"
    state = light(encoder) | {"norm.weight": torch.zeros(768), "norm.bias": torch.zeros(768)}
    state["pos_embed"] = sincos_table((14, 14), 768, prefix=1)
    extra = {
        "mask_token": torch.zeros(1, 1, 512),
        "decoder_pos_embed": torch.zeros(1, 197, 512),
        "decoder_embed.weight": torch.zeros(512, 768),
        "decoder_blocks.0.norm1.weight": torch.zeros(512),
        "decoder_pred.bias": torch.zeros(768),
    }
    found = import_state({"model": {**state, **extra}}, source="x", name="checkpoint-799.pth")
    assert found.card.encoder == encoder and found.card.layout == "mae" and found.card.tag == "mae"
    assert set(found.card.dropped) == {*extra, "norm.weight", "norm.bias"}
    assert {k: tuple(v.shape) for k, v in found.tensors.items()} == layout(encoder)
    # Without the decoder, the sin-cos positions still say what it is; without these, the name must.
    assert import_state({"model": state}, source="x", name="a.pth").card.encoder == encoder
    state["pos_embed"] = torch.zeros(1, 197, 768)
    tuned = state | {"fc_norm.weight": torch.zeros(768), "head.weight": torch.zeros(10, 768)}
    found = import_state({"model": tuned}, source="x", name="mae_finetuned_vit_base.pth")
    assert found.card.encoder == encoder
    assert {"fc_norm.weight", "head.weight"} <= set(found.card.dropped)
    with pytest.raises(CheckpointError, match=r"say which one it is: .*augreg_in21k or --encoder .*\.mae"):
        import_state({"model": tuned}, source="x", name="best.pth")


@pytest.mark.parametrize("shared", [False, True])
def test_beit(shared: bool) -> None:
    encoder = "vit:beit_base_patch16_224.in22k_ft_in22k"
    state = light(encoder)
    table = torch.rand(732, 12)
    own = [key for key in state if key.endswith("relative_position_bias_table")]
    assert len(own) == 12
    for key in own:
        state[key] = table
        state[key.replace("_bias_table", "_index")] = torch.zeros(197, 197, dtype=torch.int64)
    extra = {"lm_head.weight": torch.zeros(8192, 768), "mask_token": torch.zeros(1, 1, 768)}
    if shared:
        state = {key: value for key, value in state.items() if "relative_position" not in key}
        state["rel_pos_bias.relative_position_bias_table"] = table
        state["rel_pos_bias.relative_position_index"] = torch.zeros(197, 197, dtype=torch.int64)
        extra |= {"cls_pt_layers.0.norm1.weight": torch.zeros(768)}
    whole = {"model": {**state, **extra, "norm.weight": torch.zeros(768)}}
    found = import_state(whole, source="x", name="beit_base_patch16_224_pt22k.pth")
    assert found.card.encoder == encoder and found.card.layout == "beit"
    assert {*extra, "norm.weight"} <= set(found.card.dropped)
    assert {k: tuple(v.shape) for k, v in found.tensors.items()} == layout(encoder)
    assert all(torch.equal(found.tensors[f"encoder.net.{key}"], table) for key in own)
    second = import_state({"module": whole["model"]}, source="x", name="beitv2_base_pt1k.pth")
    assert second.card.encoder == "vit:beitv2_base_patch16_224.in1k_ft_in22k"
    with pytest.raises(CheckpointError, match="--encoder vit:beit_base.* or --encoder vit:beitv2_base"):
        import_state(whole, source="x", name="best.pth")


def test_a_shared_table_is_every_blocks_start() -> None:
    table = torch.rand(5, 2)
    state = {"rel_pos_bias.relative_position_bias_table": table, "a": torch.ones(1)}
    found = expand_shared_table(state, depth=2)
    assert list(found) == [f"blocks.{i}.attn.relative_position_bias_table" for i in (0, 1)] + ["a"]
    assert found[next(iter(found))].data_ptr() != table.data_ptr() and torch.equal(
        found[next(iter(found))], table
    )


def test_tables_of_another_size_are_resized_as_timm_does() -> None:
    torch.manual_seed(0)
    large = timm.create_model("vit_tiny_patch16_384", num_classes=0)
    small = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    found = import_state(large.state_dict(), source="x", name="x", encoder=TINY)
    assert found.card.resized == ("pos_embed: (1, 577, 192) -> (1, 197, 192)",)
    from timm.models.vision_transformer import checkpoint_filter_fn

    expected = checkpoint_filter_fn(large.state_dict(), small)["pos_embed"]
    assert torch.equal(found.tensors["encoder.net.pos_embed"], expected)
    state = light("vit:beit_base_patch16_224.in22k_ft_in22k")
    table = torch.rand(47 * 47 + 3, 12)  # fine-tuned at 384 x 384
    key = "blocks.3.attn.relative_position_bias_table"
    found = import_state({**state, key: table}, source="x", name="beit.pth")
    assert found.card.resized == (f"{key}: (2212, 12) -> (732, 12)",)
    assert torch.equal(found.tensors[f"encoder.net.{key}"][-3:], table[-3:])


def test_the_original_layout_of_dinov2_is_read_by_timm() -> None:
    encoder = "vit:vit_small_patch14_dinov2.lvd142m"
    state = light(encoder) | {"mask_token": torch.zeros(1, 384), "norm.bias": torch.zeros(384)}
    found = import_state(state, source="x", name="dinov2_vits14_pretrain.pth")
    assert found.card.encoder == encoder and set(found.card.dropped) == {"mask_token", "norm.bias"}


def test_the_wrong_encoder_is_explained_and_the_right_one_named() -> None:
    state = light(TINY)
    with pytest.raises(CheckpointError) as caught:
        import_state(state, source="x.pth", name="x.pth", encoder="vit:vit_small_patch16_224.augreg_in21k")
    text = str(caught.value)
    assert "x.pth as vit:vit_small_patch16_224.augreg_in21k: the weights do not fit" in text
    assert f"Its shapes are those of {TINY}: try --encoder." in text and "of another shape: cls_token" in text
    with pytest.raises(CheckpointError, match="not laid out like MiT or Trans4PASS, so it is not mit_b1"):
        import_state(state, source="x", name="x", encoder="mit_b1")
    with pytest.raises(ValueError, match="no model 'vit_nonsense'"):
        import_state(state, source="x", name="x", encoder="vit:vit_nonsense")
    cut = {key: value for key, value in state.items() if "blocks.7.mlp" not in key}
    with pytest.raises(CheckpointError, match="4 missing: blocks.7.mlp.fc1.weight"):
        import_state(cut, source="x", name="x", encoder=TINY)
    with pytest.raises(CheckpointError, match="1 unexpected: blocks.0.adapter.weight"):
        import_state(state | {"blocks.0.adapter.weight": torch.ones(1)}, source="x", name="x", encoder=TINY)


def test_every_catalogued_vit_is_found_by_its_width_and_patch() -> None:
    for name in VITS:
        assert timm.models.get_pretrained_cfg(name.removeprefix("vit:")).hf_hub_id, name
    assert vits_of((192, 3, 16, 16)) == [TINY]
    assert vits_of((1280, 3, 14, 14)) == ["vit:vit_huge_patch14_224.mae"]
    assert recognise({"x": torch.ones(1)}) == "timm"
