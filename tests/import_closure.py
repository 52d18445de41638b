"""Which source files a module needs, read off its imports without importing anything."""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator
from pathlib import Path

import panoda

PACKAGE = Path(panoda.__file__).resolve().parent


def import_closure(module: str, *, registries: bool = False, package: Path = PACKAGE) -> tuple[Path, ...]:
    """Source files a module of this package needs, found without importing anything.

    Follows ``import`` and ``from`` statements anywhere in the files, and parent packages.

    Args:
        module: Dotted name, such as ``panoda.stages.pretrain``.
        registries: Follow string constants that name a module, too (tables of modules imported by name).
        package: Folder of the top package.

    Raises:
        ValueError: there is no such module.
    """
    first = _find(module, package)
    if first is None:
        raise ValueError(f"{module}: no such module below {package}")
    found: dict[Path, None] = {}
    todo = [(module, first)]
    while todo:
        name, path = todo.pop()
        if path in found:
            continue
        found[path] = None
        if path == package / "__init__.py":  # its public names are imported when they are used
            continue
        names = _mentioned(name, path, registries=registries)
        todo += [(n, p) for n in names if (p := _find(n, package))]
    return tuple(sorted(found))


def _find(module: str, package: Path) -> Path | None:
    top, *rest = module.split(".")
    if top != package.name:
        return None
    base = package.joinpath(*rest)
    for candidate in (base / "__init__.py", base.with_suffix(".py") if rest else base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _mentioned(module: str, path: Path, *, registries: bool) -> Iterator[str]:
    parts = module.split(".")
    yield from (".".join(parts[:n]) for n in range(1, len(parts)))
    here = parts if path.name == "__init__.py" else parts[:-1]
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif registries and isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value.startswith(f"{parts[0]}.") and node.value.replace(".", "_").isidentifier():
                yield node.value


def _parse(path: Path) -> ast.AST:
    source = path.read_text(encoding="utf-8")
    for _ in range(20):
        try:
            return ast.parse(source, str(path))
        except SystemError:
            # CPython 3.11 counts nesting across threads: another one that parses just now spoils it.
            time.sleep(0.01)
    return ast.parse(source, str(path))
