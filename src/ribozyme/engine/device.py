"""Where a model runs and in which number type its matrix products are."""

import torch

from ribozyme.errors import ConfigError, DeviceError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BATCH_TOKENS = {"cpu": 1_536, "cuda": 65_536}
"""Tokens of a batch. On a CPU the widest rows, RNA-FM's of 5,120 numbers, stay below 32 MB: larger blocks
glibc gives back to the system each time, and gets anew page by page. On a GPU fewer tokens leave it idle."""


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU.

    Raises
    ------
    DeviceError : a device that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} does not exist", hint="auto, cpu, cuda or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"device {name!r} was asked for, but torch sees no CUDA device", hint="use device='cpu'"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device {name!r} was asked for, but there are {torch.cuda.device_count()}")
    return device


def choose_dtype(name: str, device: torch.device, *, float32_on_cpu: bool = False) -> torch.dtype:
    """The type of matrix products: `auto` is bfloat16 where the processor multiplies it fast, else float32.

    float32_on_cpu : the model loses accuracy and gains no speed in bfloat16 on a CPU (state-space scans)
    """
    if name == "auto":
        fast = fast_bfloat16(device) and not (float32_on_cpu and device.type == "cpu")
        return torch.bfloat16 if fast else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r} does not exist", hint=f"auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def fast_bfloat16(device: torch.device) -> bool:
    """Does this hardware multiply bfloat16 faster than float32? Asked of the processor, never of a name."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def batch_tokens(device: torch.device, wanted: int | None = None) -> int:
    """The token budget of a batch on `device`: what is wanted, or what suits it.

    Raises
    ------
    ConfigError : less than one token is wanted.
    """
    if wanted is not None and wanted < 1:
        raise ConfigError(f"batch_tokens {wanted} must be positive")
    return BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"]) if wanted is None else wanted


def keep_freed_memory() -> None:
    """Use again what one operation freed in the next, which saves a tenth of the time of some models.

    glibc gives blocks back to the system, and gets them anew page by page, unless they are smaller than the
    largest that it took back before, 32 MB at most. This one is never touched. Elsewhere nothing changes.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
