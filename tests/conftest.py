"""A model that many files use, which tests are slow, and their order: long files begin, so no core waits at the end."""

from pathlib import Path

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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of 13 classes with random weights."""
    import torch

    from panoda.models import create_model
    from panoda.models.core.checkpoint import make_card, save_model

    torch.manual_seed(0)
    model = create_model("trans4pass_nano", num_classes=13)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, model, make_card(model, label_space="cs13", stage="pretrain", seed=0))
    return path
