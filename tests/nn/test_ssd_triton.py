"""The kernel for CUDA against the recurrence.

    pip install triton; TRITON_INTERPRET=1 pytest -m triton        # on a CPU, by the interpreter of Triton
    pytest -m triton                                               # on a GPU

Without either, the tests are skipped.
"""

import os

import pytest
import torch

from ribozyme.nn import ssd as scan
from ribozyme.nn.ssd import Chunks, ssd, ssd_reference

pytestmark = pytest.mark.triton
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


@pytest.fixture
def kernel():
    pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
    if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("neither a GPU nor TRITON_INTERPRET=1")
    from ribozyme.nn import ssd_triton

    return ssd_triton


def drawn(lengths, heads=4, dim=16, groups=2, width=32, forgets=1.0):
    """What a scan is of, in float64."""
    rng, total = torch.Generator().manual_seed(sum(lengths)), sum(lengths)

    def normal(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    dt = torch.rand(total, heads, generator=rng, dtype=torch.float64)
    A = -forgets * torch.rand(heads, generator=rng, dtype=torch.float64)
    B, C = normal(total, groups, width), normal(total, groups, width)
    state = normal(len(lengths), heads, dim, width)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    return (normal(total, heads, dim), dt, A, B, C), cu_seqlens, state


@pytest.mark.parametrize("lengths", [[1], [64], [65, 1, 200], [5, 63, 64, 130]])
@pytest.mark.parametrize("forgets", [0.01, 1.0, 40.0])
@pytest.mark.parametrize("begun", [False, True])
def test_it_is_the_recurrence(kernel, lengths, forgets, begun):
    given, cu_seqlens, state = drawn(lengths, forgets=forgets)
    before = state if begun else None
    y, last = ssd_reference(*given, cu_seqlens, before)
    ours = [one.float().to(DEVICE) for one in given]
    before = None if before is None else before.float().to(DEVICE)
    found, ended = kernel.ssd_triton(*ours, cu_seqlens.to(DEVICE), before)
    torch.testing.assert_close(found.cpu().double(), y, rtol=0, atol=1e-5 * float(y.abs().max()))
    torch.testing.assert_close(ended.cpu().double(), last, rtol=0, atol=1e-5 * float(last.abs().max()))
    again, none = kernel.ssd_triton(*ours, cu_seqlens.to(DEVICE), before, final=False)
    assert none is None
    assert torch.equal(again, found)


def test_a_sequence_knows_nothing_of_its_batch(kernel):
    given, cu_seqlens, _ = drawn([70, 33, 129])
    given = [one.float().to(DEVICE) for one in given]
    whole, _ = kernel.ssd_triton(*given, cu_seqlens.to(DEVICE))
    x, dt, A, B, C = given
    alone, _ = kernel.ssd_triton(
        *(x[70:103], dt[70:103], A, B[70:103], C[70:103]), torch.tensor([0, 33], device=DEVICE)
    )
    assert torch.equal(whole[70:103], alone)


def test_only_some_shapes_fit(kernel):
    x, B = torch.zeros(1, 2, 64), torch.zeros(1, 1, 128)
    assert kernel.fits(x, B)
    assert not kernel.fits(torch.zeros(1, 2, 48), B)
    assert not kernel.fits(x, torch.zeros(1, 1, 8))


@pytest.mark.skipif(not CUDA, reason="no GPU")
def test_the_scan_takes_it_where_it_can(kernel, monkeypatch):
    monkeypatch.setattr(scan, "TRITON", True)
    given, _, _ = drawn([70, 33])
    chunks = Chunks.of([70, 33])
    expected, _ = ssd(*(one.float() for one in given), chunks)
    with torch.inference_mode():
        found, _ = ssd(*(one.float().to(DEVICE) for one in given), chunks.to(torch.device(DEVICE)))
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-4)
