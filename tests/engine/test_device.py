import os
import subprocess
import sys

import pytest
import torch

from ribozyme.engine import device as places
from ribozyme.errors import ConfigError, DeviceError

CPU = torch.device("cpu")


def test_bfloat16_is_chosen_by_what_the_processor_can_do(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert places.choose_dtype("auto", CPU) is torch.bfloat16
    assert places.choose_dtype("auto", CPU, float32_on_cpu=True) is torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert places.choose_dtype("auto", CPU) is torch.float32
    assert places.choose_dtype("bfloat16", CPU) is torch.bfloat16


def test_what_does_not_exist_is_named():
    with pytest.raises(ConfigError, match="'fp8'"):
        places.choose_dtype("fp8", CPU)
    with pytest.raises(ConfigError, match="'gpu'"):
        places.choose_device("gpu")


def test_a_missing_gpu_is_an_error_not_a_fallback(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert places.choose_device("auto") == CPU
    with pytest.raises(DeviceError, match="no CUDA"):
        places.choose_device("cuda")


FAULTS = """
import resource, torch
from ribozyme.engine.device import keep_freed_memory
keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10_000_000)  # 40 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.parametrize(("chosen", "kept"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "131072"}, False)])
def test_freed_memory_serves_the_next_batch_unless_glibc_is_told_otherwise(chosen, kept):
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=os.environ | chosen, capture_output=True, text=True, check=True
    )
    assert (int(done.stdout) < 100) is kept


def test_other_systems_keep_their_allocator(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(places.ctypes, "CDLL", lambda name: pytest.fail("no library is to be asked"))
    places.keep_freed_memory()
