import pytest
import torch

from panoda.system import context
from panoda.system.context import check_shares, resolve_device, resolve_devices, resolve_precision


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


@pytest.mark.parametrize(
    ("name", "wanted", "batch", "expected"),
    [
        ("cuda", "auto", 8, 8),
        ("cuda", "auto", 6, 6),
        ("cuda", "auto", 4, 4),
        ("cuda", "auto", 7, 7),
        ("cuda", "auto", 11, 1),
        ("cuda:3", "auto", 8, 1),
        ("cuda", 2, 8, 2),
        ("cpu", "auto", 8, 1),
        ("cpu", 2, 8, 2),
    ],
)
def test_processes_are_as_many_as_gpus_that_divide_the_batch(monkeypatch, name, wanted, batch, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert resolve_devices(wanted, torch.device(name), batch_size=batch) == expected


def test_more_processes_than_gpus_or_than_the_batch_divides_by_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"devices is 4, but 2 GPU\(s\) are visible; use auto"):
        resolve_devices(4, torch.device("cuda"), batch_size=8)
    with pytest.raises(ValueError, match="cuda:1 is one GPU; set it to cuda"):
        resolve_devices(2, torch.device("cuda:1"), batch_size=8)
    with pytest.raises(ValueError, match="batch_size 6 does not divide by the 4 .*devices to 1 or 2 or 3"):
        resolve_devices(4, torch.device("cpu"), batch_size=6)
    check_shares(8, 4)


def test_loader_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    for cores, devices, expected in ((16, 1, 4), (16, 4, 2), (2, 1, 1), (1, 8, 1)):
        monkeypatch.setattr(context, "cores", lambda cores=cores: cores)
        assert context.resolve_workers("auto", gpu, devices) == expected
        assert context.resolve_workers("auto", torch.device("cpu"), devices) == 0
        assert context.resolve_workers(3, gpu, devices) == 3
