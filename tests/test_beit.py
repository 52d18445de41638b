"""BEiT and its tokenizer: beside transformers, masks, relations of blocks, codebooks."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from panoda.models.beit import MaskedTokenModel, block_masks, encoder_tensors
from panoda.models.encoders import timm_models, vit
from panoda.models.encoders.factory import create_encoder
from panoda.models.tokenizer import DiscreteVAE, codebook_use

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's beit_base and vit_tiny with few and narrow blocks."""

    whole = timm_models.build
    monkeypatch.setattr(vit, "build", lambda name, **wanted: whole(name, **{**wanted, **TINY}))


def filled(model: torch.nn.Module) -> torch.nn.Module:
    """Values far from the start's, which is nearly linear."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def of_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names -> those of BeitForMaskedImageModeling."""
    names = (
        (r"^encoder\.net\.cls_token", "beit.embeddings.cls_token"),
        (r"^mask_token", "beit.embeddings.mask_token"),
        (r"^encoder\.net\.patch_embed\.proj", "beit.embeddings.patch_embeddings.projection"),
        (r"^encoder\.net\.rel_pos_bias", "beit.shared_position_bias"),
        (r"^encoder\.net\.blocks\.", "beit.layers."),
        (r"attn\.relative_position_bias_table", "relative_position_bias.relative_position_bias_table"),
        (r"norm1", "layernorm_before"),
        (r"norm2", "layernorm_after"),
        (r"gamma_", "lambda_"),
        (r"attn\.proj", "attention.o_proj"),
        (r"^norm\.", "layernorm."),
        (r"^head\.", "lm_head."),
    )
    found = {}
    for key, value in state.items():
        if key.endswith("qkv.weight"):
            for name, part in zip("qkv", value.chunk(3), strict=True):
                found[key.replace("attn.qkv", f"attention.{name}_proj")] = part
        else:
            found[re.sub(r"attn\.([qv])_bias", r"attention.\1_proj.bias", key)] = value
    for pattern, new in names:
        found = {re.sub(pattern, new, key): value for key, value in found.items()}
    return found


@pytest.mark.parametrize("shared", [True, False])
def test_loss_and_gradients_are_those_of_transformers(shared: bool) -> None:
    transformers = pytest.importorskip("transformers")
    ours: Any = filled(MaskedTokenModel("beit_base_patch16_224", vocabulary=50, shared_bias=shared))
    config = transformers.BeitConfig(
        **{
            "vocab_size": 50,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": 32,
        },
        **{"intermediate_size": 96, "patch_size": 8, "layer_norm_eps": 1e-6, "use_mask_token": True},
        **{"use_shared_relative_position_bias": shared, "use_relative_position_bias": not shared},
        **{"layer_scale_init_value": 0.1, "use_mean_pooling": True, "drop_path_rate": 0.0},
    )
    # The pooled model alone leaves the last norm to the head; ours and the released code have it once.
    theirs = transformers.BeitForMaskedImageModeling(config).eval()
    missing, unexpected = theirs.load_state_dict(of_transformers(ours.state_dict()), strict=False)
    assert not unexpected and all("relative_position_index" in key for key in missing)
    images = torch.randn(2, 3, 32, 32)
    mask, codes = block_masks(2, (4, 4), seed=0), torch.randint(50, (2, 4, 4))
    loss, accuracy = ours.loss(images, codes, mask_ratio=0.4, mask=mask)
    wanted = theirs(images, bool_masked_pos=mask, labels=codes.flatten(1)[mask])
    torch.testing.assert_close(loss, wanted.loss, rtol=1e-5, atol=0)
    logits, _ = ours(images, mask=mask)
    torch.testing.assert_close(logits, wanted.logits[mask], rtol=1e-4, atol=1e-5)
    assert accuracy == (wanted.logits[mask].argmax(dim=1) == codes.flatten(1)[mask]).float().mean()
    loss.backward()
    wanted.loss.backward()
    norms = [
        sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None).sqrt()
        for model in (ours, theirs)
    ]
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_tiny_patch16_224"])
def test_an_encoder_starts_where_pretraining_ends(name: str) -> None:
    model: Any = filled(MaskedTokenModel(name, vocabulary=8))
    encoder: Any = create_encoder(f"vit:{name}").eval()
    state = {key.removeprefix("encoder."): value for key, value in encoder_tensors(model).items()}
    encoder.load_state_dict(state)
    images = torch.randn(1, 3, 24, 48)
    mask = torch.zeros(1, 18, dtype=torch.bool)
    mask[0, 0] = True
    patches = model.encoder.embed(images)
    patches[0, 0] = model.mask_token
    (tokens,) = model.encoder.encode(patches, (3, 6), after=[1])
    (again,) = encoder.encode(patches, (3, 6), after=[1])
    torch.testing.assert_close(again, tokens)
    logits, _ = model(images, mask=mask)
    torch.testing.assert_close(logits[0], model.head(model.norm(tokens[0, 1])))


def test_blocks_share_one_table_as_published() -> None:
    model = MaskedTokenModel("beit_base_patch16_224", vocabulary=8)
    tables = [name for name, _ in model.named_parameters() if "relative_position" in name]
    assert tables == ["encoder.net.rel_pos_bias.relative_position_bias_table"]
    scales = [p for name, p in model.named_parameters() if "gamma" in name]
    assert len(scales) == 4 and all((scale == 0.1).all() for scale in scales)


def test_masks_are_blocks_of_two_fifths() -> None:
    masks = block_masks(200, (14, 14), seed=0)
    counts = masks.sum(dim=1)
    assert counts.max() <= round(0.4 * 196) and counts.float().mean() > 0.36 * 196
    assert torch.equal(masks, block_masks(200, (14, 14), seed=0))
    # Neighbours of masked patches are masked much more often than two in five.
    grid = masks.unflatten(1, (14, 14))
    both = (grid[:, :, 1:] & grid[:, :, :-1]).sum() / grid[:, :, :-1].sum()
    assert both > 0.7


@pytest.mark.parametrize("grid", [(1, 8), (2, 2), (3, 20), (6, 12)])
def test_every_grid_gets_a_mask(grid: tuple[int, int]) -> None:
    counts = block_masks(50, grid, seed=1).sum(dim=1)
    assert counts.min() > 0 and counts.max() <= round(0.4 * grid[0] * grid[1])


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_masks_of_nothing_or_everything(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"mask_ratio is .*, which masks (0|16) of 16 patches"):
        block_masks(1, (4, 4), mask_ratio=ratio)


def test_bad_sizes_are_named() -> None:
    model = MaskedTokenModel("beit_base_patch16_224", vocabulary=8)
    with pytest.raises(
        ValueError, match="images of 20 x 32 .* no whole number of patches of 8.* such as 16 x 32"
    ):
        model(torch.zeros(1, 3, 20, 32))
    with pytest.raises(ValueError, match="gives 2 x 2 tokens, the encoder has 4 x 4 patches.*reduction"):
        model.loss(torch.zeros(1, 3, 32, 32), torch.zeros(1, 2, 2, dtype=torch.long), mask_ratio=0.4)


# --- tokenizer -------------------------------------------------------------------------------------------


def test_the_loss_of_a_tokenizer_by_hand() -> None:
    torch.manual_seed(0)
    vae = DiscreteVAE(vocabulary=5, reduction=4, width=8)
    images = torch.rand(2, 3, 8, 12)
    logits = vae.logits(images)
    assert logits.shape == (2, 5, 2, 3) and torch.equal(vae.tokens(images), logits.argmax(dim=1))
    torch.manual_seed(1)
    loss, error, tokens = vae(images, temperature=1e-4, kl_weight=0.5)
    torch.manual_seed(1)
    uniform = -torch.empty_like(logits).exponential_().log()
    drawn = (logits + uniform).argmax(dim=1)
    torch.testing.assert_close(error, (vae.decode(drawn) - images).square().mean(), rtol=1e-2, atol=0)
    shares = logits.softmax(dim=1).mean(dim=(0, 2, 3))
    divergence = (shares * (shares * 5).log()).sum()
    torch.testing.assert_close(loss, error + 0.5 * divergence)
    assert torch.equal(tokens, vae.tokens(images))
    loss.backward()
    assert all(p.grad is not None for p in vae.parameters())


def test_a_tokenizer_learns_colours() -> None:
    torch.manual_seed(0)
    vae = DiscreteVAE(vocabulary=16, reduction=4, width=16)
    palette = torch.tensor([[0.9, 0.2, 0.1], [0.1, 0.3, 0.9]])
    optimizer = torch.optim.Adam(vae.parameters(), lr=5e-3)
    for step in range(150):
        cells = palette[torch.randint(2, (8, 4, 4))].permute(0, 3, 1, 2)
        images = cells.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
        loss, error, tokens = vae(images, temperature=max(0.0625, 1 - step / 100), kl_weight=0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert len(tokens.unique()) >= 2 and error < 0.02  # 0.11 is the error of the mean colour


def test_use_of_a_codebook_and_its_collapse() -> None:
    even = codebook_use(torch.full((64,), 10))
    assert even.used == 64 and math.isclose(even.perplexity, 64) and not even.collapsed
    skewed = codebook_use(torch.tensor([97, 1, 1, 1] + [0] * 60))
    assert skewed.used == 4 and skewed.collapsed
    for name in ("kl_weight", "lr", "vocabulary"):
        assert f"ssl.tokenizer.{name}" in skewed.advice()


@pytest.mark.parametrize(("vocabulary", "reduction"), [(1, 8), (16, 6), (16, 1)])
def test_impossible_tokenizers(vocabulary: int, reduction: int) -> None:
    with pytest.raises(ValueError, match="power of two such as 8"):
        DiscreteVAE(vocabulary=vocabulary, reduction=reduction)


def test_images_of_no_whole_tokens() -> None:
    with pytest.raises(ValueError, match="20 x 16 pixels are no whole number of tokens of 8"):
        DiscreteVAE(vocabulary=4, reduction=8, width=8).tokens(torch.zeros(1, 3, 20, 16))
