"""Videos: every frame labelled as if it were a picture, metadata kept, bad files named."""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_predict import picture, run, said

from panoda.data.formats.gpano import Area
from panoda.data.formats.spherical import V1, Sphere, add_sphere, read_sphere, sphere_xml
from panoda.data.formats.videos import Frames, open_video
from panoda.deployment.model import Model, load
from panoda.deployment.predict import PredictResult, predict_files
from panoda.deployment.view import Geometry
from panoda.deployment.viewer_page import write_viewer
from panoda.inference.whole import Smoothing

av = pytest.importorskip("av")

LOSSLESS = {"preset": "ultrafast", "qp": "0"}


def pictures(count: int, size: tuple[int, int] = (64, 128)) -> list[np.ndarray]:
    """Smooth pictures that change from one to the next, with ends that meet."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(count):
        values = generator.integers(0, 256, (8, 9, 3), dtype=np.uint8)
        values[:, -2:] = values[:, :1]
        found.append(np.asarray(Image.fromarray(values).resize(size[::-1])))
    return found


def film(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    rate: int = 10,
    codec: str = "libx264",
    container: Mapping[str, str] | None = None,
    turned: int = 0,
    tags: Mapping[str, str] | None = None,
) -> Path:
    """Write a video."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=dict(container or {})) as target:
        stream: Any = None
        for pixels in frames:
            if stream is None:
                stream = target.add_stream(codec, rate=rate, options=LOSSLESS if codec == "libx264" else {})
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
                stream.metadata.update(tags or {})
                if turned:
                    stream.set_display_rotation(turned)
            target.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        target.mux(stream.encode())
    return path


def decoded(path: Path, format: str = "rgb24") -> list[np.ndarray]:
    with av.open(str(path)) as source:
        return [frame.to_ndarray(format=format) for frame in source.decode(video=0)]


def spherical(path: Path) -> tuple[int, ...] | None:
    """AVSphericalMapping as FFmpeg reads it."""
    with av.open(str(path)) as source:
        found = next(source.decode(video=0)).side_data.get("SPHERICAL")
        return None if found is None else struct.unpack("<4i5I", bytes(found))


def box(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def sv3d(pitch: float = 0.0, roll: float = 0.0, top: float = 0.0, bottom: float = 0.0) -> bytes:
    """V2, as its description says; a kind of ``equi``."""
    pose = struct.pack(">iii", 0, int(pitch * 2**16), int(roll * 2**16))
    edges = struct.pack(">4I", int(top * 2**32), int(bottom * 2**32), 0, 0)
    header, none = box(b"svhd", bytes(4), b"test\0"), bytes(4)
    return box(b"sv3d", header, box(b"proj", box(b"prhd", none, pose), box(b"equi", none, edges)))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("films") / "clip.mp4", pictures(10))


@pytest.fixture(scope="module")
def labelled(
    tmp_path_factory: pytest.TempPathFactory,
    clip: Path,
    checkpoint: Path,
) -> tuple[Path, PredictResult]:
    out = tmp_path_factory.mktemp("labelled")
    return out, predict_files(checkpoint, [clip], out, height=48)


def test_a_frame_has_the_labels_of_the_same_picture(
    tmp_path: Path,
    clip: Path,
    checkpoint: Path,
    labelled: tuple[Path, PredictResult],
) -> None:
    out, result = labelled
    assert result.failures == [] and result.labels == [out / "labels/clip.mkv"]
    frames = decoded(clip)
    for number, pixels in enumerate(frames):
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
    stills = predict_files(checkpoint, sorted(tmp_path.glob("*.png")), tmp_path / "out", height=48)
    labels, overlays = decoded(result.labels[0], "gray"), decoded(out / "overlays/clip.mp4")
    assert len(labels) == len(overlays) == len(frames) == 10
    for label, overlay, still in zip(labels, overlays, stills.labels, strict=True):
        assert np.array_equal(label, np.asarray(Image.open(still)))
        near = np.asarray(Image.open(tmp_path / "out/overlays" / f"{still.stem}.jpg")).astype(int)
        assert overlay.shape == (64, 128, 3) and np.abs(near - overlay).mean() < 12
    table, same = pd.read_csv(out / "frames/clip.csv"), pd.read_parquet(out / "frames/clip.parquet")
    one = pd.read_csv(stills.summary)
    assert table.frame.tolist() == list(range(10)) and table.seconds.round(3).tolist() == [
        k / 10 for k in range(10)
    ]
    shared = [*table.columns[2:]]
    np.testing.assert_allclose(table[shared], one[shared], atol=1e-6)
    np.testing.assert_allclose(same[shared], one[shared], atol=1e-6)
    (row,) = pd.read_csv(result.summary).to_dict("records")
    for name in shared:
        assert row[name] == pytest.approx(one[name].mean(), abs=2e-6)
    assert row["taken_for"] == "full circle (2:1, no metadata, its ends meet)" and row["height"] == 64
    with av.open(str(out / "labels/clip.mkv")) as source:
        assert next(source.decode(video=0)).color_range == 2  # full: nothing is stretched on the way to a PNG
    with av.open(str(out / "overlays/clip.mp4")) as overlay:
        stream = overlay.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 10 and overlay.duration == 1_000_000


@pytest.mark.parametrize(
    ("asked", "numbers", "rate"),
    [
        (Frames(fps=2), [0, 5], 2),
        (Frames(fps=3), [0, 4, 7], 3),
        (Frames(fps=1000), list(range(10)), 10),
        (Frames(first=2, stop=5), [2, 3, 4], 10),
        (Frames(fps=5, first=3), [3, 5, 7, 9], 5),
    ],
)
def test_frames_by_rate_and_range(
    tmp_path: Path,
    clip: Path,
    checkpoint: Path,
    asked: Frames,
    numbers: list[int],
    rate: int,
) -> None:
    with open_video(clip) as video:
        assert [frame.number for frame in video.frames(asked)] == numbers
        assert abs((video.count(asked) or 0) - len(numbers)) <= 1
    if rate != 10:
        result = predict_files(checkpoint, [clip], tmp_path, height=32, frames=asked)
        with av.open(str(tmp_path / "overlays/clip.mp4")) as overlay:
            assert overlay.streams.video[0].average_rate == rate
        frames = result.manifest["images"][0]["frames"]
        assert (frames["count"], frames["first"], frames["last"]) == (len(numbers), numbers[0], numbers[-1])


def test_spherical_metadata_say_what_it_is_and_stay(
    tmp_path: Path,
    clip: Path,
    checkpoint: Path,
) -> None:
    xml = sphere_xml(Area(360, 90, -90), 64, 128).replace(b"unknown", b"camera 1")
    files = {name: tmp_path / f"{name}.mp4" for name in ("one", "two", "both", "cropped")}
    spheres = {
        "one": Sphere(xml),
        "two": Sphere(b"", sv3d(pitch=5, roll=-7, top=0.25)),
        "both": Sphere(xml, sv3d()),
        "cropped": Sphere(sphere_xml(Area(180, 45, -45, 11.25), 64, 128)),
    }
    for name, file in files.items():
        file.write_bytes(clip.read_bytes())
        add_sphere(file, spheres[name])
        assert read_sphere(file) == spheres[name] and spherical(file) is not None
        assert len(decoded(file)) == 10
    # In a Matroska file FFmpeg writes them itself.
    with av.open(str(files["two"])) as source, av.open(str(tmp_path / "matroska.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    files["matroska"] = tmp_path / "matroska.mkv"
    files["tag"] = film(
        tmp_path / "tag.mkv", pictures(2), tags={"SPHERICAL-VIDEO": spheres["cropped"].xml.decode()}
    )
    out, told = tmp_path / "out", list[str]()
    result = predict_files(
        checkpoint,
        list(files.values()),
        out,
        height=32,
        frames=Frames(stop=2),
        geometry=Geometry(upright=True),
        say=told.append,
    )
    assert result.failures == []
    records = {record["name"]: record for record in result.manifest["images"]}
    level = "; levelled by pitch 5 and roll -7 (spherical metadata)"
    unknown = "; not levelled: no pitch or roll in its metadata; give --pitch and --roll"
    unused = "; its pose is not used: give --upright with --pitch and --roll"
    assert [line.split(": ", 1)[1] for line in told] == [
        f"full circle (spherical metadata){unknown}",
        f"full circle (spherical metadata){level}",
        f"full circle (spherical metadata){unknown}",
        f"half circle of 180 degrees (spherical metadata){unknown}",
        f"full circle (spherical metadata){unused}{unknown}",
        f"half circle of 180 degrees (spherical metadata){unknown}",
    ]
    assert (records["two"]["lat_top_deg"], records["matroska"]["lat_top_deg"]) == (45, 45)
    assert (records["two"]["pitch_deg"], records["two"]["levelled_by"]) == (5, [5, -7])
    assert (records["cropped"]["lat_bottom_deg"], records["cropped"]["centre_lon_deg"]) == (-45, 11.25)
    for name in spheres:
        written = out / f"overlays/{name}.mp4"
        found = read_sphere(written)
        assert found.sv3d == spheres[name].sv3d and spherical(written) == spherical(files[name])
        assert found.xml == (spheres[name].xml or sphere_xml(Area(360, 45, -90), 64, 128))
        assert len(decoded(written)) == 2
    assert b"FullPanoHeightPixels>85<" in read_sphere(out / "overlays/matroska.mp4").xml
    assert read_sphere(out / "overlays/tag.mp4") == spheres["cropped"]
    plain = predict_files(checkpoint, [clip], out, height=32, frames=Frames(stop=1))
    assert read_sphere(out / "overlays/clip.mp4") == Sphere() and plain.failures == []


def test_boxes_that_make_no_sense_are_no_metadata(tmp_path: Path, clip: Path) -> None:
    data = clip.read_bytes()
    whole = tmp_path / "whole.mp4"
    whole.write_bytes(data)
    add_sphere(whole, Sphere(b"<x/>", sv3d()))
    good, file = whole.read_bytes(), tmp_path / "a.mp4"
    assert V1 in good
    for end in range(0, len(good), 97):
        file.write_bytes(good[:end])
        read_sphere(file)
    generator = np.random.default_rng(0)
    moov = good.index(b"moov")
    for _ in range(50):
        wild = bytearray(good)
        for place in generator.integers(moov, len(good), 8):
            wild[place] = generator.integers(256)
        file.write_bytes(bytes(wild))
        read_sphere(file)
    fast = film(tmp_path / "fast.mp4", pictures(2), container={"movflags": "faststart"})
    with pytest.raises(ValueError, match="not an MP4 that ends with its index"):
        add_sphere(fast, Sphere(b"<x/>"))
    assert read_sphere(fast) == Sphere()


def test_smoothing_is_a_mean_over_time(
    tmp_path: Path,
    clip: Path,
    checkpoint: Path,
    labelled: tuple[Path, PredictResult],
) -> None:
    generator = torch.Generator().manual_seed(0)
    frames = [torch.randn(1, 5, 4, 6, generator=generator) for _ in range(3)]
    smooth = Smoothing(0.6)
    mean = frames[0].softmax(1)
    for logits in frames:
        mean = 0.6 * mean + 0.4 * logits.softmax(1)
        torch.testing.assert_close(smooth(logits).softmax(1), mean)
    assert Smoothing(0)(frames[0]) is frames[0]
    with pytest.raises(ValueError, match="smoothing of 1: expected"):
        Smoothing(1)
    plain = decoded(labelled[0] / "labels/clip.mkv", "gray")
    predict_files(checkpoint, [clip], tmp_path, height=48, smooth=0.8)
    calm = decoded(tmp_path / "labels/clip.mkv", "gray")
    assert np.array_equal(plain[0], calm[0])

    def flicker(labels: list[np.ndarray]) -> float:
        return float(np.mean([(one != two).mean() for one, two in zip(labels, labels[1:], strict=False)]))

    assert 0 < flicker(calm) < 0.6 * flicker(plain)


def test_what_is_done_is_left_alone(
    tmp_path: Path,
    clip: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photo, out = picture(tmp_path / "a.png", (64, 128)), tmp_path / "out"
    label, seen = Model.label, list[str]()
    monkeypatch.setattr(
        Model,
        "label",
        lambda self, shown, **options: seen.append(shown.path.name) or label(self, shown, **options),
    )

    def again(**options: Any) -> list[str]:
        seen.clear()
        result = predict_files(checkpoint, [clip, photo], out, height=32, **options)
        assert [path.name for path in result.labels] == ["clip.mkv", "a.png"] and len(
            pd.read_csv(result.summary)
        ) == 2
        return sorted(set(seen))

    two = {"frames": Frames(stop=2)}
    assert again(**two) == ["a.png", "clip.mp4"] and again(**two) == []
    assert again(**two, smooth=0.5) == ["clip.mp4"] and again(**two) == ["clip.mp4"]
    (out / "frames/clip.csv").unlink()
    assert again(**two) == ["clip.mp4"]

    def stop(self: Model, shown: Any, **options: Any) -> Any:
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append("")
        return label(self, shown, **options)

    seen.clear()
    monkeypatch.setattr(Model, "label", stop)
    with pytest.raises(KeyboardInterrupt):
        predict_files(checkpoint, [clip], tmp_path / "new", height=32)
    assert [p.name for p in (tmp_path / "new").rglob("*") if p.is_file()] == ["manifest.json"]


def test_bad_files_are_named_and_the_rest_is_done(
    tmp_path: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, frames = tmp_path / "in", pictures(40)
    good = film(folder / "good.mov", frames[:4])
    cut = {}
    for name, container in (("front.mp4", {"movflags": "faststart"}), ("end.mp4", {}), ("cut.mkv", {})):
        cut[name] = film(folder / name, frames, container=container)
        cut[name].write_bytes(cut[name].read_bytes()[: cut[name].stat().st_size // 2])
    (folder / "text.mp4").write_text("no video")
    (folder / "empty.avi").touch()
    (folder / "raw.insv").touch()
    film(folder / "codec.mp4", frames[:2])
    (folder / "codec.mp4").write_bytes((folder / "codec.mp4").read_bytes().replace(b"avc1\0", b"zzzz\0"))
    film(folder / "small.mp4", pictures(2, (16, 128)))
    film(folder / "stereo.mp4", frames[:2])
    entry = Sphere(b"", box(b"st3d", bytes(4), b"\1") + sv3d())
    add_sphere(folder / "stereo.mp4", entry)
    with av.open(str(folder / "sound.mp4"), "w") as target:
        stream = target.add_stream("aac", rate=48000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 48000
        target.mux(stream.encode(sound))
        target.mux(stream.encode())
    changing(folder / "sizes.avi", [*pictures(2), *pictures(2, (96, 160))])
    picture(folder / "a.png", (64, 128))
    options = ("--checkpoint", checkpoint, "--out", tmp_path / "out", "--height", 32)
    status, text, error = run(monkeypatch, capsys, folder, folder / "raw.insv", *options)
    assert status == 1 and "1 images and 1 videos in" in text and "11 of 13 files could not be read" in error
    for name, message in {
        "front.mp4": "cut off",
        "end.mp4": "no video, or one that is cut off",
        "cut.mkv": "cut off: ",
        "text.mp4": "no video, or one that is cut off",
        "empty.avi": "no video, or one that is cut off",
        "raw.insv": "stitch it with the camera's program",
        "codec.mp4": "its codec is not known",
        "small.mp4": "too small: 16 x 128",
        "stereo.mp4": "two pictures in a frame (stereo)",
        "sound.mp4": "no pictures in it, sound alone",
        "sizes.avi": "frame 2 is 96 x 160 pixels (height x width), those before are 64 x 128",
    }.items():
        (line,) = [line for line in error.splitlines() if line.startswith(f"{folder / name}: ")]
        assert message in line
    written = sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file() and p.parent.name != "out")
    assert written == ["a.jpg", "a.png", "a.png", "good.csv", "good.mkv", "good.mp4", "good.parquet"]
    assert "no frame in 4:9, it has 4" in said(monkeypatch, capsys, good, *options, "--frames", "4:9")
    for name in ("front.mp4", "cut.mkv"):
        advice = re.search(r"--frames (:\d+)", said(monkeypatch, capsys, folder / name, *options))
        assert advice and run(monkeypatch, capsys, folder / name, *options, "--frames", advice[1])[0] == 0
    for extra, message in (
        (("--fps", 0), "a rate of 0 frames a second: expected 0.001 or more"),
        (("--frames", "7"), "expected FIRST:STOP"),
        (("--frames", "7:7"), "0 <= FIRST < STOP"),
        (("--smooth", 1), "smoothing of 1: expected"),
    ):
        assert message in said(monkeypatch, capsys, good, *options, *extra)


def changing(path: Path, frames: list[np.ndarray]) -> None:
    """A video of Motion JPEG whose pictures change their size."""
    with av.open(str(path), "w") as target:
        stream: Any = None
        for number, pixels in enumerate(frames):
            encoder: Any = av.CodecContext.create("mjpeg", "w")
            encoder.height, encoder.width = pixels.shape[:2]
            encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1, 10)
            if stream is None:
                stream = target.add_stream("mjpeg", rate=10)
                stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], "yuvj420p"
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuvj420p")
            picture.pts = 0
            for packet in [*encoder.encode(picture), *encoder.encode()]:
                packet.pts = packet.dts = number
                packet.stream = stream
                target.mux(packet)


def test_without_pyav_the_images_are_done(
    tmp_path: Path,
    clip: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    result = predict_files(
        checkpoint, [clip, picture(tmp_path / "a.png", (64, 128))], tmp_path / "out", height=32
    )
    ((_, reason),) = result.failures
    assert "videos need PyAV" in reason and "run `pip install 'panoda[video]'`" in reason
    assert [path.name for path in result.labels] == ["a.png"]


def test_turned_frames_stand_upright(
    tmp_path: Path,
    checkpoint: Path,
) -> None:
    frames = pictures(2, (64, 96))
    turned = film(
        tmp_path / "turned.mp4", [np.ascontiguousarray(np.rot90(frame, -1)) for frame in frames], turned=90
    )
    with open_video(turned) as video:
        for frame, expected in zip(video.frames(Frames()), frames, strict=True):
            assert np.abs(frame.pixels.astype(int) - expected).mean() < 8
    result = predict_files(checkpoint, [turned], tmp_path / "out", height=32)
    assert decoded(result.labels[0], "gray")[0].shape == (64, 96)


def test_odd_sizes_ids_and_json(
    tmp_path: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with av.open(str(tmp_path / "odd.mkv"), "w") as target:
        stream: Any = target.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 49, 99, "bgr0"
        pixels = pictures(1, (49, 99))[0]
        target.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        target.mux(stream.encode())
    out = tmp_path / "out"
    options = ("--checkpoint", checkpoint, "--out", out, "--ids", "cityscapes", "--json")
    status, text, error = run(monkeypatch, capsys, tmp_path / "odd.mkv", *options)
    assert status == 0 and "odd.mkv: full circle" in error
    with pytest.raises(ValueError, match="no predictions of images here"):
        write_viewer(out)
    (record,) = json.loads(text)["images"]
    assert record["frames"]["count"] == 1 and record["files"]["label"] == "labels/odd.mkv"
    label = load(checkpoint).predict(pixels).label
    table = np.array([7, 8, 11, 12])
    found = decoded(out / "labels/odd.mkv", "gray")[0]
    assert found.shape == (49, 99) and np.array_equal(found[label < 4], table[label[label < 4]])
    assert decoded(out / "overlays/odd.mp4")[0].shape == (48, 98, 3)
