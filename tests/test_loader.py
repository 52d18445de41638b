"""Training batches depend on (seed, step) alone; ordered batches visit everything once."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from raw_data import prepared_folder

from panoda.config import AugmentParams
from panoda.data.loading import loader
from panoda.data.loading.loader import training_batches
from panoda.data.loading.prepared import PreparedSplit
from panoda.data.loading.pseudo import PseudoLabelSplit, PseudoLabelWriter
from panoda.data.loading.transforms import JointTransform
from panoda.engine.method import Setup
from panoda.system.context import RunContext

AUGMENT = {"crop_height": 48, "crop_width": 96, "scale": (0.5, 1.5), "jitter": 0.3, "exposure": 0.5}


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return PreparedSplit(prepared_folder(tmp_path_factory.mktemp("loader"), 7, erp=True))


def batches(split, *, start=0, steps=6, workers=0, seed=3, augment=AUGMENT, batch_size=3):
    return list(
        training_batches(
            split,
            batch_size=batch_size,
            augment=JointTransform(**augment),
            seed=seed,
            start_step=start,
            num_steps=steps,
            workers=workers,
        )
    )


def same(one, two):
    return one["ids"] == two["ids"] and all(
        torch.equal(one[k].nan_to_num(-1), two[k].nan_to_num(-1))
        for k in ("image", "label", "valid", "indices", "rows", "columns")
    )


def test_shapes(split):
    (batch,) = batches(split, steps=1)
    assert batch["image"].shape == (3, 3, 48, 96) and batch["image"].dtype == torch.uint8
    assert batch["label"].shape == (3, 48, 96) and batch["label"].dtype == torch.int64
    assert batch["valid"].shape == (3, 48, 96) and batch["valid"].dtype == torch.bool
    assert batch["ids"] == [split.ids[i] for i in batch["indices"].tolist()]
    assert batch["rows"].shape == (3, 48) and batch["columns"].shape == (3, 96)


def test_resumed_run_sees_the_same_batches(split):
    whole = batches(split, steps=8)
    resumed = batches(split, start=5, steps=3)
    assert all(same(a, b) for a, b in zip(whole[5:], resumed, strict=True))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(split, workers):
    here, there = batches(split, start=2), batches(split, start=2, workers=workers)
    assert len(there) == 6 and all(same(a, b) for a, b in zip(here, there, strict=True))


def test_batches_of_loader_processes_are_pinned_where_a_gpu_fetches_them(split, monkeypatch):
    asked = []
    monkeypatch.setattr(loader, "DataLoader", lambda steps, **keywords: asked.append(keywords) or [])
    for device, pinned in (("cpu", False), ("cuda:0", True)):
        params = SimpleNamespace(batch_size=2, iterations=3)
        context = RunContext(device=torch.device(device), workers=2)
        setup = Setup("pretrain", None, params, 0, context, split)
        start = setup.batches(split, AugmentParams(crop_height=32, crop_width=32), domain="source")
        assert list(start(1)) == [] and asked[-1]["pin_memory"] is pinned
        assert asked[-1]["num_workers"] == 2 and list(asked[-1]["sampler"]) == [1, 2]


def test_global_random_state_is_neither_read_nor_changed(split):
    torch.manual_seed(1)
    first = batches(split)
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    assert all(same(a, b) for a, b in zip(first, batches(split), strict=True))
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_seed_changes_everything(split):
    assert not any(same(a, b) for a, b in zip(batches(split), batches(split, seed=4), strict=True))


def test_every_epoch_is_a_permutation(split):
    seen = [i for b in batches(split, steps=14, augment={}) for i in b["indices"].tolist()]
    epochs = [seen[k : k + 7] for k in range(0, 42, 7)]
    assert all(sorted(e) == list(range(7)) for e in epochs)
    assert len({tuple(e) for e in epochs}) > 1


def test_repeated_image_is_augmented_anew(split):
    firsts = [b["image"][b["indices"] == 0] for b in batches(split, steps=14)]
    firsts = [image[0] for image in firsts if len(image)]
    assert len(firsts) >= 5 and not any(torch.equal(firsts[0], other) for other in firsts[1:])


def test_batch_larger_than_the_split(split):
    (batch,) = batches(split, steps=1, batch_size=16)
    assert np.bincount(batch["indices"].numpy(), minlength=7).min() >= 2


def test_pseudo_labels_take_the_place_of_labels(split, tmp_path):
    with PseudoLabelWriter(tmp_path, split) as writer:
        for i, name in enumerate(split.ids):
            plane = np.full((64, 128), i, np.uint8)
            writer.add(name, plane, plane + 100)
    (batch,) = batches(PseudoLabelSplit(split, tmp_path), steps=1)
    inside = batch["valid"]
    wanted = batch["indices"].view(3, 1, 1).expand_as(inside)
    assert torch.equal(batch["label"][inside], wanted[inside])


def test_yaw_roll_needs_a_full_circle(tmp_path):
    pinhole = PreparedSplit(prepared_folder(tmp_path, 1))
    with pytest.raises(ValueError, match="360 degrees"):
        batches(pinhole, augment={"yaw_roll": True})


def test_a_batch_decodes_no_image_file(split, monkeypatch):
    def decode(*_args, **_kwargs):
        raise AssertionError("an image file was opened while training")

    monkeypatch.setattr("PIL.Image.open", decode)
    assert len(batches(split, steps=3, batch_size=4)) == 3


def test_where_shared_memory_is_small_batches_come_through_pipes(split, monkeypatch, caplog):
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    here, there = batches(split), batches(split, workers=2)
    assert len(there) == 6 and all(same(a, b) for a, b in zip(here, there, strict=True))
    # Twelve batches of 3 x 48 x 96 pixels in 3 + 8 + 1 bytes, and 24 bytes of indices.
    assert not any(batch["image"].is_shared() for batch in there)
    assert "/dev/shm has 1 MB free, batches of loader processes may take 2:" in caplog.messages[0]
    assert "docker run --shm-size=2m" in caplog.messages[0]
