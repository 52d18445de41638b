"""What the processes of a training stage tell each other: JSON of few kinds of values, never a pickle.

Who reads a pickle runs what it says. Here a job names a stage function, which has to be marked as one
(``launchable``), with paths, numbers and sections of params.yaml; an error names its class, which is taken
for Python's own and this package's errors alone.
"""

from __future__ import annotations

import base64
import json
import pkgutil
import traceback
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from panoda import config
from panoda.config import Section
from panoda.system.context import RunContext

F = TypeVar("F", bound=Callable[..., Any])
_NOT_SENT = ("logger", "fan_out", "rank", "world", "cache")
"""Fields of a context that a worker has of its own."""


def launchable(function: F) -> F:
    """Mark a function as one that workers may call; it is found by its module and name."""
    function.__dict__["launchable"] = True
    return function


def send(link: Connection, kind: str, **values: Any) -> None:
    """Send a message of plain JSON values."""
    link.send_bytes(json.dumps({"kind": kind, **values}).encode())


def receive(link: Connection) -> tuple[str, dict[str, Any]]:
    """Kind and values of the next message.

    Raises:
        EOFError: the other end is closed.
    """
    values = json.loads(link.recv_bytes())
    return values.pop("kind"), values


def pack_call(
    function: Callable[..., Any], keywords: Mapping[str, Any], context: RunContext
) -> dict[str, Any]:
    """A call of a launchable function as JSON values.

    Args:
        function: Marked by ``launchable``.
        keywords: Its arguments besides ``context``: paths, numbers, texts, sections, and mappings and tuples
            of these.
        context: How to compute; the logger and the place among the processes are the worker's own.

    Raises:
        TypeError: an argument of another type, or one that would not come back as it is.
    """
    packed = {name: _pack(name, value) for name, value in keywords.items()}
    for name, value in packed.items():
        if _unpack(value) != keywords[name]:
            raise TypeError(f"argument {name} does not survive as JSON: {keywords[name]!r}")
    own = {f.name: getattr(context, f.name) for f in fields(context) if f.name not in _NOT_SENT}
    own |= {
        "device": str(context.device),
        "dtype": None if context.dtype is None else str(context.dtype).removeprefix("torch."),
        "state_dir": None if context.state_dir is None else str(context.state_dir),
    }
    return {"function": f"{function.__module__}:{function.__qualname__}", "keywords": packed, "context": own}


def unpack_call(call: Mapping[str, Any]) -> tuple[Callable[..., Any], dict[str, Any], RunContext]:
    """Function, keywords and context of a packed call.

    Raises:
        ValueError: the function is not launchable.
    """
    function = pkgutil.resolve_name(call["function"])
    if not getattr(function, "launchable", False):
        raise ValueError(f"{call['function']} is no function that workers may call; mark it as launchable")
    own = dict(call["context"])
    own["device"] = torch.device(own["device"])
    own["dtype"] = None if own["dtype"] is None else getattr(torch, own["dtype"])
    own["state_dir"] = None if own["state_dir"] is None else Path(own["state_dir"])
    keywords = {name: _unpack(value) for name, value in call["keywords"].items()}
    return function, keywords, replace(RunContext(), **own)


def pack_error(error: BaseException) -> dict[str, Any]:
    """An error as JSON values."""
    return {
        "classes": [f"{cls.__module__}:{cls.__qualname__}" for cls in type(error).__mro__],
        "text": str(error),
        "trace": "".join(traceback.format_exception(error)),
    }


def unpack_error(packed: Mapping[str, Any], where: str) -> BaseException:
    """The error, with its traceback as a note: of its own class, or of the nearest one known here.

    Args:
        packed: From ``pack_error``.
        where: Says in the note where it was raised.
    """
    first = packed["classes"][0].partition(":")[2]
    found = next(filter(None, (_error(name, packed["text"], first) for name in packed["classes"])))
    found.add_note(f"{where}:\n{packed['trace']}")
    return found


def pack_image(image: np.ndarray) -> dict[str, Any]:
    """An (H, W, 3) uint8 picture as JSON values."""
    pixels = np.ascontiguousarray(image, dtype=np.uint8)
    return {"shape": pixels.shape, "pixels": base64.b64encode(pixels.tobytes()).decode()}


def unpack_image(packed: Mapping[str, Any]) -> np.ndarray:
    """The picture."""
    pixels = np.frombuffer(base64.b64decode(packed["pixels"]), dtype=np.uint8)
    return pixels.reshape(packed["shape"]).copy()


def _pack(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, Section):
        return {"section": type(value).__name__, "values": value.model_dump(mode="json")}
    if isinstance(value, Mapping):
        return {"mapping": {str(key): _pack(f"{name}[{key}]", one) for key, one in value.items()}}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_pack(f"{name}[{i}]", one) for i, one in enumerate(value)]}
    raise TypeError(
        f"argument {name} is a {type(value).__name__}; workers are handed paths, numbers, texts, sections of "
        "params.yaml, and mappings, tuples and lists of these"
    )


def _unpack(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "section" in value:
        section = getattr(config, value["section"], None)
        if not (isinstance(section, type) and issubclass(section, Section)):
            raise ValueError(f"panoda.config has no section {value['section']}")
        return section.model_validate(value["values"])
    ((kind, inner),) = value.items()
    if kind == "path":
        return Path(inner)
    if kind == "mapping":
        return {key: _unpack(one) for key, one in inner.items()}
    return (tuple if kind == "tuple" else list)(_unpack(one) for one in inner)


def _error(name: str, text: str, first: str) -> BaseException | None:
    """An error of class ``name`` ("module:class"), unless it is foreign or takes more than a text."""
    if not name.startswith(("builtins:", "panoda.")):
        return None
    cls = pkgutil.resolve_name(name)
    if not (isinstance(cls, type) and issubclass(cls, BaseException)):
        return None
    try:
        return cls(text if cls.__qualname__ == first else f"{first}: {text}")
    except TypeError:
        return None
