"""What a file is that is meant to hold weights, by its content: names of downloads say little."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

_STATE_DICT = "torch.save(model.state_dict(), 'weights.pth')"
_PAGE = "a web page, not weights: a download that failed or asks for consent; fetch the file itself"
_ARCHIVE = "an archive; unpack it and name the file of weights inside"
_BEGINNINGS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the weights; run `git lfs pull` where it lies"),
    (b"\x89HDF", "an HDF5 file (Keras, TensorFlow), which is not read; fetch the weights for PyTorch"),
    (b"\x93NUMPY", "a NumPy array, which is not read; fetch the weights for PyTorch"),
    (b"GGUF", "a GGUF file, whose weights are quantised; fetch the unquantised weights for PyTorch"),
    (b"\x1f\x8b", _ARCHIVE),
    (b"7z\xbc\xaf", _ARCHIVE),
    (b"\xfd7zXZ", _ARCHIVE),
    (b"Rar!", _ARCHIVE),
)
# A protobuf that begins with ir_version and then the producer, opset or graph of an ONNX model.
_ONNX = re.compile(rb"\x08[\x01-\x20][\x12\x1a\x22\x28\x32\x3a\x42]")
_HEAD = 512


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a JSON header, and that header."""
    head = _head(path)
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= path.stat().st_size


def shards(path: Path) -> list[Path]:
    """The files of weights that an index names (``*.index.json``); none for any other file."""
    if not _head(path).lstrip().startswith(b"{"):
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return []
    named = content.get("weight_map")
    return [path.parent / Path(name).name for name in sorted(set(named.values()))] if named else []


def foreign(path: Path) -> str | None:
    """What a file is and what to do, where it is of a kind that holds no weights to be read here.

    Returns:
        A sentence without a full stop; None for what may be a checkpoint, a damaged one included.
    """
    head = _head(path)
    for beginning, what in _BEGINNINGS:
        if head.startswith(beginning):
            return what
    if head[257:262] == b"ustar":
        return _ARCHIVE
    if head.startswith(b"PK"):
        return _of_zip(path)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<"):
        return _PAGE
    if text.startswith(b"{"):
        return "a JSON file without weights; name the file of weights itself"
    if path.suffix == ".onnx" or _ONNX.match(head):
        return f"an ONNX file, a program; import the checkpoint it was made from ({_STATE_DICT})"
    return None


def _of_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return None  # a truncated checkpoint begins like this, too
    ends = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in ends:
        return (
            "a TorchScript archive, a compiled program rather than weights; save them from the model it was "
            f"made from, {_STATE_DICT}, or from torch.jit.load(FILE) in the same way, and import that file"
        )
    if "archive_format" in ends or "serialized_exported_program.json" in ends:
        return f"a program of torch.export; import the checkpoint it was made from ({_STATE_DICT})"
    if "data.pkl" in ends:
        return None
    if any(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays (JAX), which is not read; fetch the weights for PyTorch"
    return f"a ZIP archive without a checkpoint of PyTorch inside ({', '.join(names[:3])}); unpack it"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)
