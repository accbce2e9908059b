import ctypes
import platform

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have their own ways")
def test_large_blocks_come_from_memory_that_the_process_keeps():
    places.keep_freed_memory()
    sbrk = ctypes.CDLL(None).sbrk
    sbrk.restype, sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
    assert torch.empty(20 * 2**20, dtype=torch.uint8).data_ptr() < sbrk(0)  # mapped blocks are above it
