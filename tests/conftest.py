"""The order of the tests: files that take long begin, so that no core waits for one of them at the end."""

import pytest

LONG = (
    *("distributed", "interruption", "models_deform_triton", "fan_out", "export", "kill", "flows"),
    *("stages", "pairs"),
)
"""Files of more than some 20 seconds, without those whose tests are marked ``pipeline``."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole files keep their order; a stable sort moves the long ones to the front."""
    files: dict[str, bool] = {}
    for item in items:
        name = item.path.stem.removeprefix("test_")
        files[name] = files.get(name, name in LONG) or item.get_closest_marker("pipeline") is not None
    items.sort(key=lambda item: not files[item.path.stem.removeprefix("test_")])
