"""The tiny published networks of tests/fixtures/scgpt, with their inputs and the published answers."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ribozyme.checkpoint import open_checkpoint
from ribozyme.models.scgpt import formats
from ribozyme.models.scgpt.model import ScGPT
from ribozyme.models.scgpt.vocab import Vocabulary
from ribozyme.packing import Packed

FOLDER = Path(__file__).parents[2] / "fixtures" / "scgpt"
NAMES = sorted(path.name for path in FOLDER.iterdir())


@dataclass(frozen=True)
class Case:
    """A network, cells for it with what it wants beside them, and what the published code answers."""

    name: str
    folder: Path
    module: ScGPT
    vocabulary: Vocabulary
    batch: Packed
    expected: dict[str, np.ndarray]
    side: dict[str, Tensor] = field(default_factory=dict)
    given: list[int] | None = None

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that the published answer has."""
        return tuple(h for h in ("expression", "mvc", "classes", "adversary") if h in self.expected)

    def some(self, order: list[int]) -> "Case":
        """These cells alone, in this order."""
        ids, values = self.batch.split(self.batch.ids), self.batch.split(self.batch.values)
        side = {
            k: v[order] if k == "labels" else torch.cat([self.batch.split(v)[i] for i in order])
            for k, v in self.side.items()
        }
        batch = Packed.of([ids[i].numpy() for i in order], [values[i].numpy() for i in order])
        given = None if self.given is None else [self.given[i] for i in order]
        return replace(self, batch=batch, side=side, given=given)

    def run(self, **more):
        """Every head that there is an answer for."""
        return self.module(self.batch, heads=self.heads, given=self.given, **self.side, **more)

    def encode(self, layer: int = -1, rows: Tensor | None = None) -> Tensor:
        """The rows after a layer."""
        side = {k: v for k, v in self.side.items() if k != "modalities"}
        return self.module.encode(self.batch, layer, rows=rows, given=self.given, **side)


def load_case(name: str) -> Case:
    folder = FOLDER / name
    module, vocabulary = formats.load(open_checkpoint(folder))
    with np.load(folder / "expected.npz") as file:
        expected = dict(file)
    cuts = np.cumsum(expected["lengths"])[:-1]
    batch = Packed.of(np.split(expected["ids"], cuts), np.split(expected["values"], cuts))
    keys = [k for k in ("labels", "modalities", "perturbed") if k in expected]
    side = {k: torch.from_numpy(expected[k]).long() for k in keys}
    given = expected["given"].tolist() if "given" in expected else None
    return Case(name, folder, module, vocabulary, batch, expected, side, given)


@pytest.fixture(autouse=True)
def no_gradient(request):
    """Forward passes only, but for tests marked by the argument `gradients`."""
    with torch.set_grad_enabled("gradients" in request.fixturenames):
        yield


@pytest.fixture
def gradients() -> None:
    """For tests that go backward."""


@pytest.fixture(scope="session")
def get_case() -> Callable[[str], Case]:
    """A case by name; networks are shared between tests and stay as they are."""
    return cache(load_case)


@pytest.fixture
def fresh_case() -> Callable[[str], Case]:
    """A case whose network a test may change."""
    return load_case


def pytest_generate_tests(metafunc) -> None:
    """A test that asks for `case` runs for every network."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", NAMES, indirect=True)


@pytest.fixture
def case(request, get_case) -> Case:
    """One of the published networks."""
    return get_case(request.param)
