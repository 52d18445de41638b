"""Which tests are slow, and the order of the tests: long files begin, so that no core waits for one at the end."""

import pytest

SLOW = (
    *(
        "bench",
        "benchmark",
        "benchmark_few_labels",
        "benchmark_self_supervised",
        "distributed",
        "export",
        "fan_out",
        "imaginary_gpu",
        "interruption",
        "kill",
    ),
    *("pairs", "pipeline", "pod", "scaling", "walk"),
)
"""Files that start many processes or train many models: `make test-slow` runs them, `make test` leaves them out."""
LONG = ("flows", "stages", "accumulation", "averaging", "random_parameters", "config_scenarios", "predict")
"""Files of `make test` that take longest."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow files; whole files keep their order, and a stable sort moves the long ones to the front."""
    for item in items:
        if _name(item) in SLOW:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: _name(item) not in (*SLOW, *LONG))


def _name(item: pytest.Item) -> str:
    return item.path.stem.removeprefix("test_")
