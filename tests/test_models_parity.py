"""Numbers: the released model's where its fixture is at hand, our own nano model's always."""

import copy

import numpy as np
import pytest
import torch
from parity import OWN, RELEASED, filled, image, nano, nano_fixture, released_layout, stages_of

from panoda.models import Segmenter, create_model
from panoda.models.decoders.dmlpv2 import DMLPv2Decoder
from panoda.models.weights.importing import import_state

TOLERANCE = 1e-3
needs_released = pytest.mark.skipif(
    not (RELEASED / "trans4pass_t.npz").is_file(), reason="the released fixtures are not at hand"
)


def test_nano_gives_the_numbers_of_its_fixture() -> None:
    stored = np.load(OWN / "trans4pass_nano.npz")
    found = nano_fixture()
    assert set(found) == set(stored.files)
    for key, value in found.items():
        np.testing.assert_allclose(value.numpy(), stored[key], rtol=0, atol=TOLERANCE, err_msg=key)


def test_fixture_notices_swapped_offsets() -> None:
    stored = np.load(OWN / "trans4pass_nano.npz")
    model, x = nano()
    swapped = model.encoder.patch_embed.offset_conv.weight.data
    swapped.copy_(swapped.reshape(49, 2, 3, 7, 7).flip(1).reshape(98, 3, 7, 7))
    found = stages_of(model, x)["encoder_stage1"][:, ::8].numpy()
    assert np.abs(found - stored["encoder_stage1"]).max() > 10 * TOLERANCE


@needs_released
def test_trans4pass_t_gives_the_numbers_of_the_released_code() -> None:
    model = create_model("trans4pass_t", num_classes=19).eval()
    model.load_state_dict(import_state(filled(released_layout("trans4pass_t")), source="x", name="x").tensors)
    stored = np.load(RELEASED / "trans4pass_t.npz")
    found = stages_of(model, image((2, 3, 96, 192)))
    samples = released_samples(found)
    assert set(samples) == set(stored.files)
    for key, value in samples.items():
        np.testing.assert_allclose(value.numpy(), stored[key], rtol=0, atol=TOLERANCE, err_msg=key)
    torch.testing.assert_close(
        found["features"], sum(found[f"decoder_embed{number}"] for number in range(1, 5))
    )


@pytest.fixture(scope="module")
def plus() -> Segmenter:
    encoder = create_model("trans4pass_t", num_classes=13).encoder
    decoder = DMLPv2Decoder(encoder.channels, num_classes=13)
    model = Segmenter(encoder, decoder, name="trans4pass_t").eval()
    model.load_state_dict(
        import_state(filled(released_layout("trans4pass_plus_t")), source="x", name="x").tensors
    )
    return model


@needs_released
def test_trans4pass_plus_t_gives_the_numbers_of_the_released_code(plus: Segmenter) -> None:
    stored = np.load(RELEASED / "trans4pass_plus_t.npz")
    samples = released_samples(stages_of(plus, image((2, 3, 96, 192))))
    assert set(samples) == set(stored.files)
    for key, value in samples.items():
        # These weights magnify rounding: the stored float32 numbers lie 0.064 (second embedding) and 0.087
        # (logits, of deviation 6.8) from what the same operations give in float64, and the released
        # operations themselves miss them by 0.009 on another processor. The test below is the sharp one.
        tolerance = 2e-2 if key in ("logits_stride8", "decoder_embed2") else TOLERANCE
        np.testing.assert_allclose(value.numpy(), stored[key], rtol=0, atol=tolerance, err_msg=key)
    labels = samples["logits_stride8"].argmax(1).numpy()
    assert (labels == stored["logits_stride8"].argmax(1)).all()


@needs_released
def test_trans4pass_plus_t_equals_the_released_operations_in_float64(plus: Segmenter) -> None:
    stored = np.load(OWN / "dmlpv2.npz")
    found = stages_of(copy.deepcopy(plus).double(), image((2, 3, 96, 192)).double())
    samples = {"logits_stride16_of_t": found["logits"][:, :, ::16, ::16]}
    for number in range(1, 5):
        samples[f"encoder_stage{number}_of_t"] = found[f"encoder_stage{number}"][:, ::64]
        samples[f"decoder_embed{number}_of_t"] = found[f"decoder_embed{number}"][:, ::64, ::4, ::4]
    assert set(samples) == {key for key in stored.files if key.endswith("_of_t")}
    for key, value in samples.items():
        np.testing.assert_allclose(value.numpy(), stored[key], rtol=0, atol=1e-8, err_msg=key)


def released_samples(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The share of every result that the released fixtures hold."""
    samples = {"logits_stride8": found["logits"][:, :, ::8, ::8]}
    for number in range(1, 5):
        samples[f"encoder_stage{number}"] = found[f"encoder_stage{number}"][:, ::16]
        samples[f"decoder_embed{number}"] = found[f"decoder_embed{number}"][:, ::16, ::2, ::2]
    return samples
