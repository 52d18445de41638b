"""What ``dvc repro`` redoes, and what it leaves alone.

The rules are tested with dvc.yaml and DVC as they are and quick doubles in the stages' place; promotion and
what it sets off, with the real flows on a few tiny images.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from project_copy import ROOT, ProjectCopy

from panoda.config.scenarios import load_scenario

pytest.importorskip("dvc")
pytest.importorskip("prefect")
pytest.importorskip("mlflow")
pytestmark = pytest.mark.pipeline

PREPARED = {"download@source", "download@target", "preprocess@source", "preprocess@target"}
FROM_WEIGHTS = {"weights"}
UNLABELLED = {"ssl_pretrain"}
FROM_PRETRAIN = {
    "pretrain",
    "warmup",
    "pseudo_labels",
    "prototypes",
    "adapt",
    "rounds",
    "evaluate",
    "report",
}
FROM_ADAPT = {"adapt", "rounds", "evaluate", "report"}


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> ProjectCopy:
    """The small city with doubles, reproduced once; every test leaves it up to date."""
    folder = tmp_path_factory.mktemp("city")
    project = ProjectCopy(folder, "city_small", doubles=True)
    assert project.repro() == PREPARED | FROM_WEIGHTS | UNLABELLED | FROM_PRETRAIN
    return project


def test_nothing_changed_nothing_runs(city: ProjectCopy) -> None:
    before = (city.folder / "ran.txt").read_text()
    assert city.repro() == set()
    assert city.status() == {}
    assert (city.folder / "ran.txt").read_text() == before


@pytest.mark.parametrize(
    ("key", "value", "first"),
    [("model.drop_path", 0.1, FROM_WEIGHTS), ("pretrain.optim.lr", 0.001, set())],
)
def test_a_model_or_pretraining_parameter_redoes_what_depends_on_it(
    city: ProjectCopy, key: str, value: float, first: set[str]
) -> None:
    city.set(key, value)
    ran = city.repro()
    assert ran == first | FROM_PRETRAIN
    assert {"pseudo_labels", "prototypes"} <= ran and not ran & PREPARED


def test_another_file_of_weights_under_the_same_name_redoes_training(city: ProjectCopy) -> None:
    both = {"weights", "pretrain"}
    file = city.folder / "data" / "weights" / "mine.safetensors"
    file.write_text("one")
    city.set("model.weights", "mine")
    assert city.repro("pretrain") == both
    file.write_text("two")
    assert city.repro("pretrain") == both
    # A file that is not asked for: the stage looks and finds the same, so there is nothing to train.
    other, kept = file.with_name("other.safetensors"), city.folder / ".dvc" / "tmp" / "kept"
    other.write_text("of no concern")
    shutil.copytree(city.folder / "outputs" / "weights", kept)
    script = city.folder / "flows" / "python.sh"
    double = script.read_text()
    script.write_text(f"[ $2 != flows.weights ] || exec cp -r '{kept}' outputs/weights\n{double}")
    assert city.repro("pretrain") == {"weights"}
    script.write_text(double)
    file.unlink()
    other.unlink()
    city.set("model.weights", None)
    assert city.repro("pretrain") == set(), "what DVC has seen before it takes from its cache"
    assert city.status() == {}


def test_an_adaptation_parameter_leaves_pseudo_labels_and_prototypes_alone(city: ProjectCopy) -> None:
    kept = {s: city.lock(s) for s in ("pseudo_labels", "prototypes")}
    city.set("adapt.class_mix", 0.3)
    assert city.repro() == FROM_ADAPT
    assert {s: city.lock(s) for s in kept} == kept


def test_how_it_is_run_redoes_nothing(city: ProjectCopy) -> None:
    for key in ("log_every", "checkpoint_every", "inference_batch", "piece_images"):
        city.set(f"runtime.{key}", 7)
    assert city.repro() == set()


def test_a_further_source_redoes_training_and_nothing_of_the_other_domains(tmp_path: Path) -> None:
    project = ProjectCopy(tmp_path / "project", "city_small", doubles=True)
    tree = yaml.safe_load((project.folder / "params.yaml").read_text())
    project.repro()
    tree["data"]["second"] = {**copy.deepcopy(tree["data"]["source"]), "folder": "more_sources/second"}
    tree["sources"] = {"source": 1.0, "second": 2.0}
    (project.folder / "params.yaml").write_text(yaml.safe_dump(tree))
    second = {"download@second", "preprocess@second"}
    assert project.repro() == second | UNLABELLED | FROM_PRETRAIN
    assert (project.folder / "data/prepared/more_sources/second/train/index.parquet").is_file()
    assert project.repro() == set()
    project.set("data.second.prepare.limit", {"train": 2})
    assert project.repro("preprocess@second") == {"preprocess@second"}
    assert project.repro() == UNLABELLED | FROM_PRETRAIN
    project.set("sources", {"source": 1.0, "second": 1.0})
    assert project.repro() == FROM_PRETRAIN


def test_where_it_computes_and_logs_changes_nothing(city: ProjectCopy) -> None:
    city.set("runtime.threads", 1)
    city.set("tracking.experiment", "elsewhere")
    assert city.repro() == set()


@pytest.mark.parametrize(
    ("key", "value", "stages"),
    [
        ("pseudo_labels.scales", [0.5], {"pseudo_labels", "rounds"}),
        ("prototypes.scales", [0.5], {"prototypes", "rounds"}),
        ("evaluate.pictures", 1, {"evaluate"}),
        ("data.target.dataset.splits.test.images", 3, {"download@target", "preprocess@target"}),
    ],
)
def test_a_section_concerns_the_stages_that_use_it(
    city: ProjectCopy, key: str, value: object, stages: set[str]
) -> None:
    old = city.set(key, value)
    changed = city.status()
    # The report shows every parameter.
    assert {stage for stage, found in changed.items() if "changed deps" in str(found)} == stages | {"report"}
    city.set(key, old)


MODEL = FROM_WEIGHTS | FROM_PRETRAIN - {"report"}


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("panoda/report/style.py", {"report"}),  # a figure's colour
        ("panoda/methods/teacher_mix.py", {"adapt", "rounds"}),
        ("panoda/methods/alignment.py", {"warmup"}),
        ("panoda/models/decoders/dmlp.py", MODEL),
        ("panoda/models/decoders/upernet.py", set()),  # another decoder than that of params.yaml
        ("panoda/city/looks.py", {"download@source", "download@target"}),
        ("panoda/data/loading/loader.py", UNLABELLED | FROM_PRETRAIN - {"report"}),
        ("panoda/cli/app.py", set()),
        ("panoda/tracking/run.py", set()),
    ],
)
def test_a_change_of_code_redoes_what_uses_it(city: ProjectCopy, file: str, stages: set[str]) -> None:
    path = city.folder / file
    original = path.read_text()
    path.write_text(original + "\n# changed\n")
    assert set(city.status()) == stages
    path.write_text(original)


def test_experiments_and_metrics(city: ProjectCopy) -> None:
    city.commit("before the experiment")
    city.dvc("exp", "run", "--name", "one", "-S", "adapt.class_mix=0.7")
    assert yaml.safe_load((city.folder / "params.yaml").read_text())["adapt"]["class_mix"] == 0.7
    difference = json.loads(city.dvc("metrics", "diff", "--json"))
    assert set(difference) == {"outputs/evaluate/headlines.json"}
    assert "one" in city.dvc("exp", "show", "--csv")
    city.commit("after")


def test_a_change_in_a_folder_used_in_place_downloads_again(tmp_path: Path) -> None:
    images = tmp_path / "images"
    scenario = tiny(tmp_path, images)
    project = ProjectCopy(tmp_path / "project", scenario, doubles=True)
    project.repro()
    picture(images / "panoramas" / "new.png", 32, 128, seed=99)
    assert project.repro("download") == {"download@target"}
    assert project.repro("download") == set()


def test_paths_of_data_sets_mean_under_dvc_what_they_mean_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    scenario = tiny(tmp_path, tmp_path / "images")
    project = ProjectCopy(tmp_path / "project", scenario, doubles=True)
    project.set("data.target.dataset.path", "~/images/panoramas")
    assert project.repro("download") == {"download@source", "download@target"}
    # What lies behind a link is seen as well; a link to nothing stops nobody.
    picture(tmp_path / "elsewhere" / "x.png", 32, 128, seed=1)
    (tmp_path / "images" / "panoramas" / "day2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "panoramas" / "gone.png").symlink_to("nowhere.png")
    assert project.repro("download") == {"download@target"}
    picture(tmp_path / "elsewhere" / "y.png", 32, 128, seed=2)
    assert project.repro("download") == {"download@target"}
    assert project.repro("download") == set()
    project.set("data.target.dataset.path", "../images/panoramas")
    assert project.repro("download") == {"download@target"}


def test_the_content_of_named_files_decides_wherever_they_lie(tmp_path: Path) -> None:
    """Two names of the label space swapped (as many bytes as before), a declaration edited."""
    scenario = tiny(tmp_path, tmp_path / "images")
    space, declaration = tmp_path / "elsewhere" / "mine.yaml", tmp_path / "elsewhere" / "own.yaml"
    space.parent.mkdir()
    names = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "walker", "rider"]
    space.write_text(yaml.safe_dump({"names": names}))
    splits = {
        name: {"images": [f"{name}/{{id}}.png"], "labels": [f"{name}annot/{{id}}.png"]}
        for name in ("train", "val")
    }
    own = {"name": "own", "title": "Own", "projection": "pinhole", "fov_x_deg": 60.0, "splits": splits}
    own["labels"] = {"space": "mine.yaml", "others": "ignore"}
    declaration.write_text(yaml.safe_dump(own))
    tree = yaml.safe_load(scenario.read_text())
    tree["label_space"] = str(space)
    tree["data"]["source"]["dataset"] = {
        "kind": "declared",
        "declaration": str(declaration),
        "path": str(tmp_path / "images" / "camvid"),
        "splits": {"train": "train", "val": "val"},
    }
    scenario.write_text(yaml.safe_dump(tree))
    project = ProjectCopy(tmp_path / "project", scenario, doubles=True)
    assert PREPARED <= project.repro() and project.repro() == set()
    assert project.status() == {}
    names[:2] = names[1::-1]
    written = yaml.safe_dump({"names": names})
    assert len(written) == space.stat().st_size
    space.write_text(written)
    # Its declaration names the file, too. (`dvc status` does not look: stage watch does, at every repro.)
    assert {"download@source", "preprocess@source", "preprocess@target"} <= project.repro()
    assert project.repro() == set()
    declaration.write_text(yaml.safe_dump(own | {"title": "New"}))
    assert {"download@source", "preprocess@source"} <= project.repro()
    assert project.repro() == set()


# --- the real flows ----------------------------------------------------------------------------------------


def picture(path: Path, height: int, width: int, *, seed: int, classes: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    if classes is None:
        Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
    else:
        Image.fromarray(random.integers(0, classes, (height, width), dtype=np.uint8)).save(path)


def tiny(folder: Path, images: Path) -> Path:
    """CamVid and panoramas of noise, and a scenario that trains on them for a step or two."""
    for split in ("train", "val"):
        for number in range(3):
            picture(images / "camvid" / split / f"{number}.png", 32, 48, seed=number)
            picture(images / "camvid" / f"{split}annot" / f"{number}.png", 32, 48, seed=number, classes=12)
    for number in range(3):
        picture(images / "panoramas" / f"{number}.png", 64, 128, seed=number)
    tree = load_scenario("real", folder=ROOT / "scenarios").model_dump(mode="json")
    tree["data"]["source"]["dataset"]["path"] = str(images / "camvid")
    tree["data"]["target"]["dataset"]["path"] = str(images / "panoramas")
    tree["model"] = {"encoder": "trans4pass_nano"}
    tree["data"]["source"]["prepare"] = {"height": 32, "width": 48}
    tree["data"]["target"]["prepare"] = {"height": 32, "width": 128}
    for stage in ("pretrain", "warmup", "adapt"):
        tree[stage] = {"iterations": 1, "batch_size": 1, "optim": {"lr": 0.001}}
    tree["pseudo_labels"] = {"scales": [1.0], "flip": False}
    tree["prototypes"] = {"scales": [1.0]}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_promoting_a_pretraining_by_hand_regenerates_pseudo_labels(tmp_path: Path) -> None:
    project = ProjectCopy(tmp_path / "project", tiny(tmp_path, tmp_path / "images"), doubles=False)
    up_to_labels = {"weights", "ssl_pretrain", "pretrain", "warmup", "pseudo_labels"}
    assert project.repro("pseudo_labels") == PREPARED | up_to_labels
    before = {stage: project.lock(stage) for stage in ("pretrain", "warmup", "pseudo_labels")}

    changed = "pretrain.iterations=2"
    project.run("python", "-m", "flows.pretrain", "--set", changed, "--out", "runs/mine")
    assert project.repro("--dry", "pseudo_labels") == set(), "a run by hand must not touch the pipeline"

    refused = project.run("panoda", "promote", "runs/mine", check=False)
    assert refused.returncode == 1 and "pretrain.iterations: 2 instead of 1" in refused.stderr
    assert {stage: project.lock(stage) for stage in before} == before

    project.set("pretrain.iterations", 2)
    project.run("panoda", "promote", "runs/mine")
    model = Path("model.safetensors")
    promoted = (project.folder / "outputs" / "pretrain" / model).read_bytes()
    assert promoted == (project.folder / "runs" / "mine" / model).read_bytes()
    assert project.lock("pretrain") != before["pretrain"]

    assert project.repro("pseudo_labels") == {"warmup", "pseudo_labels"}
    assert project.lock("pseudo_labels") != before["pseudo_labels"]
    check_records(project)


def check_records(project: ProjectCopy) -> None:
    """Digests in the records are those of dvc.lock, and MLflow knows the promotion."""
    from panoda.tracking import connect

    record = json.loads((project.folder / ".panoda" / "pipeline" / "pseudo_labels.json").read_text())
    lock = project.lock("pseudo_labels")
    for found in record["inputs"].values():
        assert found["digest"] == lock[found["path"]]
    client = connect(f"sqlite:///{project.folder}/mlflow.db")
    tags = client.get_run(str(project.record(Path("runs/mine"))["mlflow_run_id"])).data.tags
    assert tags["origin"] == "promoted"
    child = client.get_run(record["mlflow_run_id"])
    parent = client.get_run(child.data.tags["parent_run"])
    assert parent.data.tags["stage"] == "warmup"
    assert parent.data.tags["parent_run"] == project.record(Path("runs/mine"))["mlflow_run_id"]


def test_pretraining_without_labels_is_redone_for_its_own_sake_alone(city: ProjectCopy) -> None:
    crop = {"crop_height": 48, "crop_width": 96}
    mae = {"method": "mae", "iterations": 3, "batch_size": 2, "optim": {"lr": 0.1}, **crop}
    new = {"model.encoder": "vit:vit_tiny_patch16_224", "model.decoder": "fcn", "ssl": mae}
    old = {key: city.set(key, value) for key, value in new.items()}
    assert {"ssl_pretrain", "pretrain"} <= city.repro("pretrain")
    city.set("model.decoder", "setr_naive")
    assert city.repro("pretrain") == {"weights", "pretrain"}
    for key, value in old.items():
        city.set(key, value)
    assert city.repro("pretrain") == set(), "what DVC has seen before it takes from its cache"
