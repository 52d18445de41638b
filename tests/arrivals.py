"""Ways in which a miniature tree reaches its default folder: from a server with faults, or by hand.

Every function returns one that takes the tree and the running server, and calls `panoda data get`.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import yaml
from data_project import declare, declared, panoda, zipped
from http_server import Served, Server

from panoda.data.formats import declaration as declarations

DOWNLOADS = Path("data/downloads")
Arrive = Callable[[Path, Server], None]


def offer(server: Server, name: str, archives: dict[str, Served], declaration: str | None = None) -> None:
    """Give a declaration the addresses of archives on the server, with size and checksum."""
    tree = yaml.safe_load(Path(declaration).read_text()) if declaration else declared(name)
    files = []
    for file, served in archives.items():
        server.files[file] = served
        sha256 = hashlib.sha256(served.body).hexdigest()
        address = f"{server.url}/{file}"
        files.append({"name": file, "url": address, "bytes": len(served.body), "sha256": sha256})
    declare(Path(declaration).parent if declaration else declarations.BUILT_IN, {**tree, "files": files})


def get(name: str, *archives: str) -> None:
    status, text = panoda("get", name)
    assert status == 0 and all(f"{archive}: unpacked" in text for archive in archives), text


def from_server(name: str, parts: dict[str, str | tuple[str, ...]], **fault: object) -> Arrive:
    """Archive name -> beginning of the names in it; the last of them is served with a fault."""

    def arrive(tree: Path, server: Server) -> None:
        archives = {
            archive: Served(zipped(tree, only=lambda entry, part=part: entry.startswith(part)))
            for archive, part in parts.items()
        }
        bad = list(archives.values())[-1]
        for key, value in fault.items():
            setattr(bad, key, value)
        if "cuts" in fault:
            bad.cuts = [len(bad.body) // 2]  # the first answer breaks off in the middle
        offer(server, name, archives)
        get(name, *parts)
        last = list(parts)[-1]
        asked = [wanted for path, wanted in server.requests if path == last]
        assert len(asked) == 2  # the fault was met, and the file asked for again
        if "cuts" in fault:
            assert asked[1] is not None and asked[1].startswith("bytes=")

    return arrive


def wrong_file_first(
    name: str, archive: str, spoil: Callable[[bytes], bytes], reason: str, declaration: str | None = None
) -> Arrive:
    """The server has another file than the declaration says; then it is put right."""

    def arrive(tree: Path, server: Server) -> None:
        body = zipped(tree)
        offer(server, name, {archive: Served(body)}, declaration)
        server.files[archive] = Served(spoil(body))
        status, text = panoda("get", declaration or name)
        assert status == 1 and reason in text, text
        assert not (DOWNLOADS / name / archive).exists()
        server.files[archive] = Served(body)
        get(declaration or name, archive)

    return arrive


def by_hand(name: str, pack: Callable[[Path, Path], None]) -> Arrive:
    """Nothing is there and the command says what to do; then what ``pack`` puts there is taken."""

    def arrive(tree: Path, server: Server) -> None:
        status, text = panoda("get", name)
        assert status == 1 and "is obtained by hand" in text, text
        pack(tree, DOWNLOADS / name)
        get(name)
        assert not server.requests

    return arrive


def stanford_archives(tree: Path, folder: Path) -> None:
    """area_1.tar.gz to area_6.tar.gz with semantic_labels.json beside them."""
    folder.mkdir(parents=True)
    for area in sorted(tree.glob("area_*")):
        with tarfile.open(folder / f"{area.name}.tar.gz", "w:gz", compresslevel=1) as archive:
            archive.add(area, area.name)
    shutil.copy(tree / "semantic_labels.json", folder)


def structured_archives(tree: Path, folder: Path) -> None:
    """All 18 archives: a scene of the tree in each of the first, and in the others one without renderings."""
    folder.mkdir(parents=True)
    scenes = sorted(path.name for path in tree.iterdir())
    for number in range(18):
        scene = scenes[number] if number < len(scenes) else f"scene_{number:05d}"
        if number >= len(scenes):
            (tree / scene).mkdir()
            (tree / scene / "annotation_3d.json").write_text("{}")
        body = zipped(tree, below="Structured3D/", only=lambda name, scene=scene: name.startswith(scene))
        (folder / f"Structured3D_panorama_{number:02d}.zip").write_bytes(body)


def copied(tree: Path, folder: Path) -> None:
    shutil.copytree(tree, folder)
