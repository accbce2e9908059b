"""The tiny published checkpoints of `tests/fixtures/make_rnafm.py`, and what their programs compute."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ribozyme.checkpoint import open_checkpoint
from ribozyme.models.rnafm import formats
from ribozyme.models.rnafm.config import Config
from ribozyme.models.rnafm.model import RNAFM
from ribozyme.models.rnafm.tokenizer import Tokenizer

FIXTURES = Path(__file__).parents[2] / "fixtures" / "rnafm"
EXPECTED = ".expected.safetensors"


@dataclass(frozen=True)
class Published:
    path: Path
    module: RNAFM
    tokenizer: Tokenizer
    ids: list[Tensor]
    expected: dict[str, Tensor]

    def answers(self, what: str) -> list[tuple[Tensor, Tensor]]:
        """(ids, expected) of each sequence for which this was computed."""
        return [
            (one, self.expected[f"{what}.{k}"])
            for k, one in enumerate(self.ids)
            if f"{what}.{k}" in self.expected
        ]


@pytest.fixture(scope="session")
def fixtures() -> Path:
    return FIXTURES


@pytest.fixture(scope="session")
def published():
    """A function: the fixture of this name, read."""

    def read(name: str) -> Published:
        path = FIXTURES / name
        expected = load_file(FIXTURES / (name.removesuffix(".pth") + EXPECTED))
        module, tokenizer = formats.load(open_checkpoint(path))
        ids = [expected[f"ids.{k}"] for k in range(sum(key.startswith("ids.") for key in expected))]
        return Published(path, module, tokenizer, ids, expected)

    return read


@pytest.fixture
def tiny():
    """A function: a random network of these sizes, norms and biases random too."""

    def make(seed: int = 0, **sizes) -> RNAFM:
        generator = torch.Generator().manual_seed(seed)
        settings = {"layers": 2, "dim": 16, "heads": 2, "ffn_dim": 24, "positions": 64} | sizes
        module = RNAFM(Config(**settings)).eval()
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4
        for name, parameter in module.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.data += 1
        return module

    return make
