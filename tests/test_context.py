import pytest
import torch

from panoda.training.context import resolve_device, resolve_precision


def test_an_unknown_device_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'gpu'.*auto, cpu, cuda"):
        resolve_device("gpu")
    assert resolve_device("cpu").type == "cpu"


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_bfloat16_is_taken_only_where_the_gpu_has_it(monkeypatch, native, expected):
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert resolve_precision("auto", torch.device("cuda")) is expected
    assert resolve_precision("auto", torch.device("cpu")) is None
