import hashlib
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from panoda.city.dataset import write_city
from panoda.city.film import Exposure
from panoda.city.looks import DEVELOPMENT_LOOKS, FINAL_LOOKS, built_in_looks, draw_look, get_look
from panoda.city.primitives import Frame, Kind, Kit, Part
from panoda.city.render import Pose, render
from panoda.city.shadows import occluder_height
from panoda.city.streets import KERB_HEIGHT, Street, street_field
from panoda.city.trace import angular_bounds, trace, visible_pairs
from panoda.city.world import build_world
from panoda.config import CameraParams, CityDataset, LookParams
from panoda.geometry.erp import erp_rays
from panoda.geometry.pinhole import erp_to_pinhole
from panoda.labels import get_label_space

PINHOLE = {"projection": "pinhole", "height": 64, "width": 128, "fov_x_deg": 90.0}
PANORAMA = {"projection": "erp", "height": 48, "width": 256, "lat_top_deg": 35.0, "lat_bottom_deg": -35.0}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def world():
    return build_world(2, get_look("northern"))


def _pose(world) -> Pose:
    frame = world.spots[0]
    return Pose(frame.x, frame.y, 1.8, frame.yaw)


def _city(camera: dict, splits: dict, **more) -> CityDataset:
    return CityDataset.model_validate(
        {
            "kind": "city",
            "camera": camera,
            "looks": {"northern": None, "evening": None},
            "splits": splits,
            **more,
        }
    )


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    }


# --- intersections against hand-computed values ---------------------------------------------------


def _one(kind: Kind, **more) -> tuple[Kit, dict]:
    kit = Kit()
    given = {"at": (0, 0, 0), "size": (2, 2, 2), "colour": (1, 1, 1)}
    kit.add(Frame(5, 0, 0, more.pop("yaw", 0.0)), 3, Part(kind, **{**given, **more}))
    return kit, given


def _shoot(kit: Kit, direction: tuple[float, float, float]) -> tuple[float, int]:
    scene = kit.scene()
    start = torch.zeros(3)
    ray = torch.tensor(direction, dtype=torch.float32)
    rays = (ray / ray.norm()).view(1, 1, 3)
    pairs = visible_pairs(angular_bounds(scene, start), rays)
    distance, prim = trace(scene, start, rays, pairs, pixel_angle=1e-3)
    return distance.item(), int(prim.item())


@pytest.mark.parametrize(
    ("kind", "more", "expected"),
    [
        (Kind.BOX, {}, 4.0),
        (Kind.BOX, {"yaw": math.pi / 4}, 5 - math.sqrt(2)),
        (Kind.BALL, {}, 4.0),
        (Kind.ROD, {}, 4.0),
        (Kind.ROD, {"spin": (0.0, math.pi / 2, 0.0), "size": (2, 2, 6)}, 2.0),  # lying along x: its cap
        (Kind.WEDGE, {"shape": (1.0, 1.0, 1.0, 0.0)}, 4.5),  # half-way up a pyramid
        (
            Kind.RING,
            {"yaw": math.pi / 2, "shape": (0.5, 0, 0, 0)},
            5.0,
        ),  # a wheel seen from the side: a spoke
        (Kind.PICKET, {"size": (2, 2, 2), "shape": (0.5, 0.5, 0, 0)}, 4.0),
    ],
)
def test_first_hit_on_each_kind(kind, more, expected):
    distance, prim = _shoot(_one(kind, **more)[0], (1.0, 0.0, 0.0))
    assert prim == 0 and distance == pytest.approx(expected, abs=1e-4)


def test_rays_that_miss_go_to_infinity():
    for direction in ((-1.0, 0.0, 0.0), (1.0, 0.5, 0.0), (0.0, 0.0, 1.0)):
        distance, prim = _shoot(_one(Kind.BOX)[0], direction)
        assert math.isinf(distance) and prim == -1


def test_nearest_of_two_wins_and_picket_gaps_let_rays_through():
    kit, given = _one(Kind.BOX)
    fence = Part(Kind.PICKET, **{**given, "size": (8.0, 0.1, 4.0)}, shape=(1.0, 0.5, 0, 0))
    kit.add(Frame(2, 0, 0, math.pi / 2), 4, fence)
    assert _shoot(kit, (1.0, 0.1, 0.0))[0] == pytest.approx(1.95 * math.hypot(1, 0.1), abs=1e-3)
    assert _shoot(kit, (1.0, -0.1, 0.0))[0] == pytest.approx(4.0 * math.hypot(1, 0.1), abs=1e-3)


def test_culling_never_loses_a_hit(world):
    origin = torch.tensor([_pose(world).x, _pose(world).y, 1.8])
    rays = erp_rays(24, 64)[..., [2, 0, 1]].reshape(-1, 24, 3).contiguous()
    pairs = visible_pairs(angular_bounds(world.scene, origin), rays)
    everything = torch.cartesian_prod(torch.arange(len(rays)), torch.arange(len(world.scene))).unbind(1)
    culled = trace(world.scene, origin, rays, pairs, pixel_angle=0.01)
    full = trace(world.scene, origin, rays, everything, pixel_angle=0.01)
    assert len(pairs[0]) < 0.2 * len(everything[0])
    assert torch.equal(culled[0], full[0]) and torch.equal(culled[1], full[1])


def test_shadow_of_a_box_falls_away_from_the_light():
    kit, given = _one(Kind.BOX)
    kit.add(Frame(-5, 0), 3, Part(Kind.BOX, **{**given, "at": (0, 0, 1)}))
    toward = torch.tensor([1.0, 0.0, 1.0]) / math.sqrt(2)
    height = occluder_height(kit.scene(), toward, extent=16.0, cells=64)  # 0.5 m cells
    # The second box fills x in [-6, -4], z in [0, 2]; light from +x at 45 degrees casts x in [-8, -4].
    row, column = 32, int((-7.25 + 16) / 0.5)
    assert height[row, column].item() == pytest.approx(2.0, abs=0.8)
    assert height[row, int((-3.25 + 16) / 0.5)].item() == 0.0
    assert height[row, int((-8.75 + 16) / 0.5)].item() == 0.0


def test_street_field_distances():
    street = Street(np.array([[-50.0, 0.0], [50.0, 0.0]]), 1, False, False, False, 3.0, 0.0)
    assert street.half == pytest.approx(3.5)
    ground = street_field([street]).look_up(torch.tensor([[0.0, 2.0], [10.0, -5.5]]))
    torch.testing.assert_close(ground.kerb, torch.tensor([-1.5, 2.0]))
    torch.testing.assert_close(ground.lateral, torch.tensor([2.0, -5.5]))
    torch.testing.assert_close(ground.along, torch.tensor([50.0, 60.0]))
    frame = street.at(60.0, -2.0)
    assert (frame.x, frame.y, frame.yaw) == (pytest.approx(10.0), pytest.approx(-2.0), 0.0)
    assert 0.1 <= KERB_HEIGHT <= 0.2


# --- rendering ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("azimuth_deg", [0.0, 115.0, 180.0])
def test_pinhole_render_equals_view_cut_from_the_panorama(world, azimuth_deg):
    pose = _pose(world)
    azimuth = math.radians(azimuth_deg)
    pinhole = CameraParams(projection="pinhole", height=96, width=128, fov_x_deg=80.0)
    panorama = CameraParams(projection="erp", height=512, width=1024)
    turned = Pose(pose.x, pose.y, pose.z, pose.yaw - azimuth)  # azimuth is positive right, yaw left
    image, label = render(world, pinhole, turned)
    wide_image, wide_label = render(world, panorama, pose, supersample=False)
    view = {"height": 96, "width": 128, "fov_x": math.radians(80), "azimuth": azimuth}
    cut = erp_to_pinhole(wide_image.permute(2, 0, 1)[None].float(), **view)[0].permute(1, 2, 0)
    cut_label = erp_to_pinhole(wide_label[None, None], **view, mode="nearest")[0, 0]
    flat = _far_from_edges(label) & _far_from_edges(cut_label)
    assert flat.float().mean() > 0.5
    agree = (label == cut_label)[flat].float().mean().item()
    difference = (image.float() - cut).abs().mean(-1)
    assert agree >= 0.97
    assert difference[flat].mean() < 6.0 and difference.mean() < 10.0  # of 255


def _far_from_edges(label: torch.Tensor) -> torch.Tensor:
    padded = torch.nn.functional.pad(label[None, None].float(), (1, 1, 1, 1), mode="replicate")
    high = torch.nn.functional.max_pool2d(padded, 3, 1)[0, 0]
    low = -torch.nn.functional.max_pool2d(-padded, 3, 1)[0, 0]
    return high == low


def test_labels_do_not_depend_on_supersampling_or_exposure(world):
    camera = CameraParams.model_validate(PINHOLE)
    image, label = render(world, camera, _pose(world))
    dark, other = render(world, camera, _pose(world), exposure=Exposure(ev=-1.0), supersample=False)
    assert image.shape == (64, 128, 3) and image.dtype == torch.uint8 and label.dtype == torch.uint8
    assert torch.equal(label, other)
    assert dark.float().mean() < 0.8 * image.float().mean()
    assert int(label.max()) < 19


def test_sizes_that_are_no_multiple_of_a_tile(world):
    camera = CameraParams(projection="erp", height=35, width=37, lat_top_deg=30, lat_bottom_deg=-60)
    image, label = render(world, camera, _pose(world))
    assert image.shape == (35, 37, 3) and label.shape == (35, 37)


def test_noise_is_seeded(world):
    camera, noisy = CameraParams.model_validate(PINHOLE), Exposure(noise=0.05)
    one, two, three = (render(world, camera, _pose(world), exposure=noisy, seed=s)[0] for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, three)


def test_sun_and_sky_light_the_scene():
    base = get_look("northern").model_copy(update={"sky": ("clear",)})
    camera = CameraParams.model_validate(PINHOLE)
    bright = build_world(4, base)
    dull = build_world(4, base.model_copy(update={"sun_strength": (0.0, 0.0)}))
    one, label = render(bright, camera, _pose(bright))
    two, same = render(dull, camera, _pose(bright))
    assert torch.equal(label, same)  # light changes no geometry
    assert (one.float() - two.float()).mean() > 5.0


def test_worlds_are_keyed_by_seed(world):
    again, other = build_world(2, get_look("northern")), build_world(3, get_look("northern"))
    assert torch.equal(world.scene.centre, again.scene.centre)
    assert world.scene.centre.shape != other.scene.centre.shape


# --- data sets ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_split(tmp_path_factory):
    out = tmp_path_factory.mktemp("city") / "raw"
    camera = {**PANORAMA, "height": 96, "width": 512}
    write_city(
        out,
        _city(camera, {"test": {"images": 18, "seed": 300}}, images_per_world=3),
        progress=False,
        workers=1,
    )
    return out / "test"


def test_all_classes_occur_over_a_small_split(small_split):
    pixels = np.zeros(256, dtype=np.int64)
    for file in (small_split / "labels").glob("*.png"):
        label = Image.open(file)
        assert label.mode == "L"
        pixels += np.bincount(np.asarray(label).ravel(), minlength=256)
    assert pixels[19:].sum() == 0
    space = get_label_space("cs19")
    missing = [space.names[k] for k in range(19) if pixels[k] < 20]
    assert not missing
    share = pixels / pixels.sum()
    frequent = sum(share[space.index(n)] for n in ("road", "building", "sky", "vegetation", "sidewalk"))
    assert frequent > 0.75
    assert share[space.index("road")] > 0.15 and share[space.index("rider")] < 0.01


def test_meta_names_every_image(small_split):
    meta = pd.read_csv(small_split / "meta.csv", dtype={"id": str})
    assert list(meta["id"]) == [f.stem for f in sorted((small_split / "images").glob("*.png"))]
    assert list(meta["look"].unique()) == ["northern", "evening"]  # worlds cycle through the looks
    assert sorted(meta["world_seed"].unique()) == list(range(300, 306))
    assert meta["z"].between(1.6, 2.2).all()
    assert meta.groupby("world_seed")["look"].nunique().eq(1).all()


def test_same_seed_same_bytes_in_any_number_of_processes(tmp_path):
    camera = {**PINHOLE, "height": 32, "width": 64}
    params = _city(camera, {"train": {"images": 4, "seed": 40}}, images_per_world=2)
    write_city(tmp_path / "one", params, progress=False, workers=1)
    write_city(tmp_path / "two", params, progress=True, workers=2)
    one, two = _digests(tmp_path / "one"), _digests(tmp_path / "two")
    assert len(one) == 9 and one == two
    other = _city(camera, {"train": {"images": 4, "seed": 42}}, images_per_world=2)
    write_city(tmp_path / "one", other, progress=False, workers=1)  # replaces the folder
    assert not set(_digests(tmp_path / "one").values()) & set(two.values())


def test_unlabelled_split_has_no_label_files(tmp_path):
    camera = {**PINHOLE, "height": 32, "width": 64}
    params = _city(camera, {"train": {"images": 1, "seed": 7, "labels": False}})
    write_city(tmp_path / "out", params, progress=False, workers=1)
    names = set(_digests(tmp_path / "out"))
    assert names == {"train/meta.csv", "train/images/00000.png"}
    assert not (tmp_path / "out/train/labels").exists()


def test_failure_leaves_the_old_folder(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("old")

    def fail(*_args, **_kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space"):
        write_city(
            tmp_path / "out", _city(PINHOLE, {"a": {"images": 1, "seed": 1}}), progress=False, workers=1
        )
    assert [f.name for f in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "kept").read_text() == "old"


def test_bad_parameters_are_refused(tmp_path):
    splits = {"a": {"images": 1, "seed": 1}}
    unknown = _city(PINHOLE, splits).model_copy(update={"looks": {"nowhere": None}})
    with pytest.raises(ValueError, match="no built-in look is called 'nowhere'.*northern"):
        write_city(tmp_path / "out", unknown, progress=False)
    with pytest.raises(ValueError, match="at least one look"):
        write_city(tmp_path / "out", _city(PINHOLE, {}), progress=False)
    with pytest.raises(ValueError, match="share world seed"):
        _city(PINHOLE, {"a": {"images": 8, "seed": 1}, "b": {"images": 8, "seed": 2}})
    assert not (tmp_path / "out").exists()


def test_looks():
    assert set(DEVELOPMENT_LOOKS) | set(FINAL_LOOKS) == set(built_in_looks())
    assert not set(DEVELOPMENT_LOOKS) & set(FINAL_LOOKS)
    for name, look in built_in_looks().items():
        get_look(name)
        assert -0.7 <= look.exposure_ev[0] <= look.exposure_ev[1] <= 0.7
        assert 0.8 <= look.gamma[0] <= look.gamma[1] <= 1.4
        drawn = draw_look(look, np.random.default_rng(0))
        assert look.haze_per_m[0] <= drawn.haze <= look.haze_per_m[1] and drawn.sky in look.sky
    own = LookParams(sky=("sunset",), building_styles=("timber",))
    assert get_look("mine", own) is own
    for field, value, message in (
        ("sky", ("purple",), "'clear', 'cloudy', 'overcast' or 'sunset'"),
        ("palettes", (), "at least 1 item"),
        ("trees", ("oak",), "'round', 'conifer' or 'palm'"),
        ("storeys", (5, 2), "two rising numbers from 1"),
    ):
        with pytest.raises(ValueError, match=message):
            LookParams(**{field: value})


def test_a_crowded_world_still_has_a_place_for_the_camera():
    assert build_world(2_107_014, get_look("southern")).spots
