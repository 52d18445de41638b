"""Numbers: the released model's where its fixture is at hand, our own nano model's always."""

import numpy as np
import pytest
import torch
from parity import OWN, RELEASED, filled, image, nano, nano_fixture, released_layout, stages_of

from panoda.models import create_model
from panoda.models.weights import load_released

TOLERANCE = 1e-3


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


@pytest.mark.skipif(not RELEASED.is_dir(), reason="the released fixtures are not at hand")
def test_trans4pass_t_gives_the_numbers_of_the_released_code() -> None:
    model = create_model("trans4pass_t", num_classes=19).eval()
    load_released(model, filled(released_layout("trans4pass_t")))
    stored = np.load(RELEASED / "trans4pass_t.npz")
    found = stages_of(model, image((2, 3, 96, 192)))
    samples = {"logits_stride8": found["logits"][:, :, ::8, ::8]}
    for number in range(1, 5):
        samples[f"encoder_stage{number}"] = found[f"encoder_stage{number}"][:, ::16]
        samples[f"decoder_embed{number}"] = found[f"decoder_embed{number}"][:, ::16, ::2, ::2]
    assert set(samples) == set(stored.files)
    for key, value in samples.items():
        np.testing.assert_allclose(value.numpy(), stored[key], rtol=0, atol=TOLERANCE, err_msg=key)
    torch.testing.assert_close(
        found["features"], sum(found[f"decoder_embed{number}"] for number in range(1, 5))
    )
