"""Stage ssl_pretrain: what it learns from, what it writes, what starts from it, and what survives a kill."""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import prepared

from benchmarks.kills import Killer, digests, table, torment
from panoda.config import ConfigError, ModelParams, NoneParams, OptimParams
from panoda.config.scenarios import load_scenario
from panoda.data.loading.image_crops import ImageCrop
from panoda.data.loading.mixture import Mixture
from panoda.data.loading.prepared import PreparedSplit
from panoda.engine.method import Setup
from panoda.engine.optim import build_scheduler, parameter_groups
from panoda.methods.mae import MAEParams, model, task
from panoda.methods.supervised import SupervisedParams
from panoda.models.core.checkpoint import load_model, read_safetensors
from panoda.models.core.errors import CheckpointError
from panoda.models.encoders.factory import create_encoder
from panoda.models.mae import MaskedAutoencoder, encoder_tensors, load_released, mae_for
from panoda.pipeline.runnable import check_runnable
from panoda.pipeline.table import STAGES
from panoda.stages.pretrain import pretrain
from panoda.stages.ssl_pretrain import ssl_pretrain
from panoda.system.context import MetricLogger, RunContext

ENCODER = "vit:vit_tiny_patch16_224"
MODEL = ModelParams(encoder=ENCODER, decoder="setr_naive", width=16)
PARAMS = MAEParams(
    **{"iterations": 4, "batch_size": 4, "crop_height": 32, "crop_width": 48, "fixed_images": 2},
    **{"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2, "validate_every": 2},
    images={"source": 1.0, "target": 3.0},
    mask_by="solid_angle",
    views=0.3,
)
FOLDER = Path(__file__).parents[1] / "scenarios"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("ssl")
    source = prepared(root / "source", {"train": 4, "val": 2}, erp=False)
    target = prepared(root / "target", {"train": 6}, erp=True, labels=False, shade=-40)
    return {
        "source_train": source / "train",
        "source_val": source / "val",
        "target_train": target / "train",
    }


def mixture(folders: dict[str, Path]) -> Mixture:
    parts = {role: PreparedSplit(folders[f"{role}_train"]) for role in ("source", "target")}
    return Mixture(parts, {"source": 1.0, "target": 3.0})


class Pictures(MetricLogger):
    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics, step: int) -> None:  # type: ignore[no-untyped-def]
        self.rows.append(dict(metrics))

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        self.seen.append((key, step))


@pytest.fixture(scope="module")
def learned(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pictures]:
    out, logger = tmp_path_factory.mktemp("learned") / "ssl_pretrain", Pictures()
    metrics = ssl_pretrain(
        **{key: path for key, path in folders.items() if key.endswith("train")},
        **{"out": out, "model": MODEL, "params": PARAMS, "seed": 0, "context": RunContext(logger=logger)},
    )
    assert set(metrics) == {"loss/total", "loss/validation"} and all(map(math.isfinite, metrics.values()))
    return out, logger


def test_it_writes_an_encoder_the_whole_network_and_a_picture(learned: tuple[Path, Pictures]) -> None:
    out, logger = learned
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {
        *("encoder/encoder.safetensors", "encoder/report.json", "pretrained.safetensors"),
        *("reconstruction.png", "history.csv", "loss_spikes.csv", "metrics.json"),
    }
    assert logger.seen == [("reconstruction", 2), ("reconstruction", 4)]
    assert sum("loss/validation" in row for row in logger.rows) == 3
    # Two images, each as input, as seen and as reconstructed, 4 pixels apart.
    assert Image.open(out / "reconstruction.png").size == (3 * 48 + 8, 2 * 32 + 4)
    net = mae_for(ENCODER, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
    _, tensors = read_safetensors(out / "pretrained.safetensors", with_tensors=True, again="")
    load_released(net, tensors)


def test_pretrain_starts_from_it(
    learned: tuple[Path, Pictures], folders: dict[str, Path], tmp_path: Path
) -> None:
    out, _ = learned
    optim = OptimParams(lr=1e-9, weight_decay=0.0)
    params = SupervisedParams(iterations=1, batch_size=2, optim=optim, select="last")
    common = {
        **{k: v for k, v in folders.items() if k.startswith("source")},
        **{"model": MODEL, "params": params, "seed": 0},
    }
    pretrain(**common, ssl_weights=out / "encoder", out=tmp_path / "mae", context=RunContext())
    pretrain(**common, out=tmp_path / "random", context=RunContext())
    nets = {name: load_model(tmp_path / name / "model.safetensors") for name in ("mae", "random")}
    _, tensors = read_safetensors(out / "encoder/encoder.safetensors", with_tensors=True, again="")
    for key, value in tensors.items():
        torch.testing.assert_close(nets["mae"][0].state_dict()[key], value, atol=1e-6, rtol=0)
    key = "encoder.net.blocks.0.attn.qkv.weight"
    assert not torch.allclose(nets["random"][0].state_dict()[key], tensors[key], atol=1e-3)
    start = nets["mae"][1].params["weights"]
    assert start["card"]["source"] == "stage ssl_pretrain, method mae, 4 steps, seed 0"
    assert nets["random"][1].params["weights"] is None


def test_the_encoder_sees_what_the_masked_autoencoder_saw() -> None:
    """Positions too: on another grid than their own, both have the same tokens."""
    mae = mae_for(ENCODER, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2).eval()
    encoder = create_encoder(ENCODER).eval()
    encoder.load_state_dict(
        {key.removeprefix("encoder."): value for key, value in encoder_tensors(mae).items()}
    )
    image = torch.randn(1, 3, 48, 96)
    with torch.no_grad():
        patches = mae.patchify(image)
        tokens = mae._encode(patches, torch.arange(18)[None], (3, 6))
        maps = encoder(image)[-1]
        expected = mae.norm(maps.flatten(2).transpose(1, 2))
    torch.testing.assert_close(tokens[:, 1:], expected, atol=1e-4, rtol=1e-4)
    assert mae.mean == (0.5, 0.5, 0.5) == tuple(encoder.mean)


def test_none_leaves_an_empty_result_and_nothing_to_start_from(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert ssl_pretrain(out=out, model=MODEL, params=NoneParams(), seed=0, context=RunContext()) == {}
    assert {path.name for path in out.rglob("*.*")} == {"report.json", "metrics.json"}
    params = load_scenario("city_small", folder=FOLDER)
    assert params.ssl == NoneParams()
    assert STAGES["ssl_pretrain"].input_paths(params=params) == {}
    assert "ssl_weights" not in STAGES["pretrain"].input_paths(params=params)
    assert "ssl_weights" in STAGES["pretrain"].input_paths()


def test_it_reads_train_splits_alone_and_those_asked_for() -> None:
    """Never the target's test images, which the scores are of."""
    inputs = STAGES["ssl_pretrain"].inputs
    assert "data/prepared/target/train" in inputs.values()
    assert not [path for path in inputs.values() if "test" in path or "val" in path]
    for images, names in (
        ("{target: 1.0}", {"target_train"}),
        ("{source: 2.0}", {"source_train"}),
        ("{source: 2.0, target: 1.0}", {"source_train", "target_train"}),
    ):
        params = load_scenario("city_small", [*MAE, f"ssl.images={images}"], folder=FOLDER)
        assert set(STAGES["ssl_pretrain"].input_paths(params=params)) == names
        assert "ssl_weights" in STAGES["pretrain"].input_paths(params=params)


# --- the method ----------------------------------------------------------------------------------------


def test_rate_decay_and_schedule() -> None:
    params = MAEParams(iterations=100, batch_size=1024, optim={"lr": 1e-3, "warmup_iterations": 20})
    assert params.scaled_optim().lr == pytest.approx(4e-3)
    optim = params.scaled_optim()
    assert (optim.betas, optim.weight_decay, optim.schedule) == ((0.9, 0.95), 0.05, "cosine")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_scheduler(
        optimizer, horizon=100, warmup_iterations=20, poly_power=0.9, schedule="cosine"
    )
    rates = []
    for _ in range(100):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(1 / 21) and rates[20] == 1.0 == max(rates)
    assert rates[60] == pytest.approx(0.5) and rates[99] == pytest.approx(
        0.5 + 0.5 * math.cos(math.pi * 79 / 80)
    )
    net = MaskedAutoencoder(
        **{"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 3},
        **{"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2},
    )
    names = {id(p): name for name, p in net.named_parameters()}
    decayed, plain = parameter_groups(net, 0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    without = {names[id(p)] for p in plain["params"]}
    assert {"cls_token", "mask_token", "norm.weight", "decoder_pred.bias"} <= without
    assert all(
        name.endswith(".weight") and "norm" not in name
        for name in set(names.values()) - without
        if "pos_embed" not in name
    )


def test_areas_of_patches(folders: dict[str, Path]) -> None:
    """Rows of panoramas by the cosine of their latitude (the band is 45 to -45); pinholes and views alike."""
    images = mixture(folders)
    net = model(ENCODER, PARAMS)
    mae = task(Setup("ssl_pretrain", net, PARAMS, 0, RunContext(), images))  # type: ignore[arg-type]
    whole = torch.arange(32) + 0.5
    batch = {
        "image": torch.zeros(3, 3, 32, 48),
        "indices": torch.tensor([1, 5, 6]),
        "rows": torch.stack([torch.full((32,), math.nan), whole, torch.full((32,), math.nan)]),
    }
    areas = mae.areas(batch)  # type: ignore[arg-type]
    assert areas.shape == (3, 6)
    assert (areas[0] == 1).all() and (areas[2] == 1).all()
    expected = math.sin(math.pi / 4) / (math.pi / 4)  # the mean of the cosine over half of the band
    torch.testing.assert_close(areas[1], torch.full((6,), expected), atol=1e-3, rtol=0)
    batch["rows"][1] = whole / 4  # the upper quarter
    rows = mae.areas(batch)[1].view(2, 3)  # type: ignore[arg-type]
    assert rows[0, 0] == rows[0, 2] < rows[1, 0] < expected


def test_losses_do_not_depend_on_labels_and_do_on_images(folders: dict[str, Path]) -> None:
    images = mixture(folders)
    torch.manual_seed(0)
    net = model(ENCODER, PARAMS)
    mae = task(Setup("ssl_pretrain", net, PARAMS, 0, RunContext(), images))  # type: ignore[arg-type]
    batch = next(mae.batches(0))
    assert batch["image"].shape == (4, 3, 32, 48) and batch["label"].numel() == 0
    again = next(mae.batches(0))
    assert torch.equal(batch["image"], again["image"]) and batch["ids"] == again["ids"]
    assert [name.partition("/")[0] for name in batch["ids"]].count("target") == 3
    loss = mae.losses(0, batch)["loss/total"]
    loss.backward()
    assert 0.5 < loss.item() < 3 and net.blocks[0].attn.qkv.weight.grad.any()
    first, second = mae.examine(net), mae.examine(net)
    assert first[0] == second[0] and np.array_equal(first[1], second[1])


def test_crops(folders: dict[str, Path]) -> None:
    images = mixture(folders)
    panorama, photograph = images[6], images[0]
    kept = {"images": images, "height": 32, "width": 64, "scale": (1.0, 1.0), "hflip": 0.0}
    generator = torch.Generator().manual_seed(0)
    still = ImageCrop(**{**kept, "yaw_roll": False})
    centre = still.centre(photograph["image"])
    assert torch.equal(centre, photograph["image"])
    for _ in range(20):
        crop = ImageCrop(**{**kept, "scale": (0.2, 1.0)})(photograph, generator, full_circle=False)
        assert crop["image"].shape == (3, 32, 64) and crop["image"].dtype is torch.uint8
        assert crop["rows"].isnan().all() and crop["label"].numel() == 0
    rolled = [ImageCrop(**kept)(panorama, generator, full_circle=True) for _ in range(20)]
    assert any(crop["columns"].max() > 64 for crop in rolled), "goes on across the seam"
    assert all(0 <= crop["rows"].min() and crop["rows"].max() <= 32 for crop in rolled)
    mirrored = ImageCrop(**{**kept, "hflip": 1.0, "yaw_roll": False})(panorama, generator, full_circle=True)
    assert mirrored["columns"][0] > mirrored["columns"][-1]


def test_views_out_of_panoramas_stay_inside_and_meet_pinholes_as_they_are(folders: dict[str, Path]) -> None:
    images = mixture(folders)
    bright = {**images[6], "image": torch.full((3, 32, 64), 200, dtype=torch.uint8)}
    crop = ImageCrop(images=images, height=48, width=32, views=1.0, view_fov_deg=(60.0, 140.0))
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        view = crop(bright, generator, full_circle=True)  # type: ignore[arg-type]
        assert view["image"].shape == (3, 48, 32) and view["rows"].isnan().all()
        assert (view["image"] == 200).all(), "looks beyond the band"


# --- what does not go together -----------------------------------------------------------------------------

MAE = [
    "ssl={method: mae, iterations: 3, batch_size: 4, crop_height: 48, crop_width: 96}",
    f"model.encoder={ENCODER}",
    "model.decoder=setr_naive",
]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.encoder=trans4pass_nano"],
            r"ssl.method mae .* not trans4pass_nano; set model.encoder to vit",
        ),
        (["model.weights=timm"], "model.weights is 'timm' and ssl.method is mae"),
        (["ssl.images={nowhere: 1.0}"], "ssl.images names nowhere; expected domains of data: source, target"),
        (["ssl.images={}"], "images names no domain"),
        (["ssl.crop_height=64"], "64 x 96 .* larger than the images of data.target, prepared at 48 x 256"),
        (["ssl.mask_ratio=1.0"], "ssl.mask_ratio: .*less than 1"),
        (["ssl.mask_ratio=0.0"], "ssl.mask_ratio: .*greater than 0"),
        (["ssl.mask_ratio=0.99"], "mask_ratio is 0.99, which keeps 0 of 18 patches"),
        (["ssl.crop_width=100"], "48 x 100 pixels .* patches of 16; set the crop .* such as 48 x 96"),
        (["ssl.scale=[0.5, 2.0]"], "scale is .* above 0 and up to 1"),
        (["ssl.decoder_num_heads=5"], "decoder_embed_dim is 512; expected a multiple of decoder_num_heads"),
        (["model.encoder=vit:test_vit"], "not built as masked autoencoders are: .*fc1"),
        (["model.encoder=vit:beit_base_patch16_224"], "plain VisionTransformers of timm, not vit:beit"),
    ],
)
def test_mistakes_are_named_before_any_stage_runs(overrides: list[str], message: str) -> None:
    check_runnable(load_scenario("city_small", MAE, folder=FOLDER))
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        check_runnable(load_scenario("city_small", [*MAE, *overrides], folder=FOLDER))


def test_the_page_has_a_scenario_that_runs(tmp_path: Path) -> None:
    page = (FOLDER.parent / "docs/self_supervised.md").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(page.split("```yaml")[1].split("```")[0], encoding="utf-8")
    params = load_scenario(tmp_path / "mine.yaml", folder=FOLDER)
    check_runnable(params)
    assert params.ssl.method == "mae" and params.data.target.dataset.path == "my/panoramas"


def test_a_missing_folder_leaves_nothing_behind(folders: dict[str, Path], tmp_path: Path) -> None:
    given = {"out": tmp_path / "out", "model": MODEL, "seed": 0, "context": RunContext()}
    with pytest.raises(ValueError, match="ssl.images names source, but no folder"):
        ssl_pretrain(target_train=folders["target_train"], params=PARAMS, **given)
    with pytest.raises(ValueError, match="no such|missing"):
        ssl_pretrain(source_train=tmp_path / "nothing", target_train=tmp_path, params=PARAMS, **given)
    assert not list(tmp_path.iterdir())


def test_pretrain_refuses_what_another_encoder_learned(
    learned: tuple[Path, Pictures], folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="set model.encoder to vit:vit_tiny_patch16_224"):
        pretrain(
            **{k: v for k, v in folders.items() if k.startswith("source")},
            **{"out": tmp_path / "out", "seed": 0, "context": RunContext()},
            model=ModelParams(encoder="vit:vit_small_patch16_224", decoder="setr_naive", width=16),
            params=SupervisedParams(iterations=1, batch_size=2, optim=OptimParams(lr=1e-3)),
            ssl_weights=learned[0] / "encoder",
        )


# --- resuming ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    root = tmp_path / "project"
    for role in ("source", "target"):
        place = root / f"data/prepared/{role}/train"
        shutil.copytree(folders[f"{role}_train"], place)
    settings = (
        "ssl={method: mae, iterations: 6, batch_size: 2, crop_height: 32, crop_width: 48, validate_every: 3, "
        "fixed_images: 2, decoder_embed_dim: 16, decoder_depth: 1, decoder_num_heads: 2, views: 0.3, "
        "mask_by: solid_angle, images: {source: 1.0, target: 1.0}}",
        *MAE[1:],
        "label_space=cs13",
        "runtime.checkpoint_every=2",
    )
    killer = Killer(root, settings)
    seconds = killer.finish("ssl_pretrain", tmp_path / "whole")
    chance = random.Random(time.time_ns())
    result = torment(killer, "ssl_pretrain", tmp_path / "whole/out", seconds, tmp_path / "killed", 2, chance)
    assert result.identical, table({"ssl_pretrain": result})
    assert "encoder/encoder.safetensors" in digests(tmp_path / "whole/out")


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "accumulate"), [(1, 2), (2, 1)])
def test_processes_and_micro_batches_change_nothing(
    learned: tuple[Path, Pictures],
    folders: dict[str, Path],
    tmp_path: Path,
    devices: int,
    accumulate: int,
) -> None:
    """Up to rounding: masks are those of the whole batch."""
    out, _ = learned
    ssl_pretrain(
        **{key: path for key, path in folders.items() if key.endswith("train")},
        **{"out": tmp_path / "parts", "model": MODEL, "seed": 0, "context": RunContext(devices=devices)},
        params=PARAMS.model_copy(update={"accumulate": accumulate}),
    )
    expected, found = (
        json.loads((folder / "metrics.json").read_text()) for folder in (out, tmp_path / "parts")
    )
    assert found == pytest.approx(expected, rel=1e-4)
