"""Objectives against their definitions, the schedule at its corners, and a loop that learns."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import sparse

from ribozyme.models.helix.config import Config as HelixConfig
from ribozyme.models.helix.model import HelixMRNA
from ribozyme.models.rnafm.config import Config as RNAConfig
from ribozyme.models.rnafm.model import RNAFM
from ribozyme.models.scgpt.config import Config as CellConfig
from ribozyme.models.scgpt.model import ScGPT
from ribozyme.packing import Packed
from ribozyme.train.pretrain import (
    Recipe,
    contrast,
    cropped,
    masked_letters,
    masked_values,
    next_letter,
    pretrain,
    shuffled,
    shuffled_cells,
)

LETTERS = torch.tensor([4, 5, 6, 7])


def seeded(module):
    module.initialise(torch.Generator().manual_seed(0))
    return module


@pytest.fixture
def helix():
    return seeded(HelixMRNA(HelixConfig(layout="M+", dim=16, heads=1, head_dim=32, state=8)))


@pytest.fixture
def rnafm():
    return seeded(RNAFM(RNAConfig(layers=1, dim=16, heads=2, ffn_dim=32, positions=40, contact_head=False)))


def draw(lengths, low, high):
    generator = np.random.default_rng(0)
    return [generator.integers(low, high, n) for n in lengths]


def test_next_letter_is_the_cross_entropy_inside_each_sequence(helix):
    sequences = draw([5, 1, 9], 7, 11)
    logs = [helix.logits(helix.encode(Packed.of([one]))).log_softmax(-1) for one in sequences]
    terms = [-log[k, one[k + 1]] for log, one in zip(logs, sequences) for k in range(len(one) - 1)]
    torch.testing.assert_close(next_letter(helix)(Packed.of(sequences)), torch.stack(terms).mean())


def test_masked_letters_hide_only_letters_and_ask_only_for_the_hidden(rnafm, monkeypatch):
    [ids] = draw([3000], 4, 8)
    ids[::10] = 0  # a special token: never hidden
    seen = {}

    def encode(batch):
        seen["ids"] = batch.ids
        return torch.zeros(len(batch.ids), 16)

    def logits(rows):
        seen["asked"] = len(rows)
        return torch.zeros(len(rows), 25)

    monkeypatch.setattr(rnafm, "encode", encode)
    monkeypatch.setattr(rnafm, "logits", logits)
    loss = masked_letters(rnafm, 24, LETTERS, torch.Generator().manual_seed(0))(Packed.of([ids]))
    changed = seen["ids"].numpy() != ids
    assert not changed[::10].any()
    assert seen["asked"] == pytest.approx(0.15 * 2700, rel=0.2)
    assert (seen["ids"] == 24).sum() == pytest.approx(0.8 * seen["asked"], rel=0.15)
    assert seen["asked"] > changed.sum() > 0.8 * seen["asked"]
    torch.testing.assert_close(loss, torch.tensor(25.0).log())  # flat scores


def test_masked_values_is_the_squared_error_of_both_heads_at_the_hidden_bins(monkeypatch):
    config = CellConfig(vocab_size=30, layers=1, dim=16, heads=2, ffn_dim=16, dropout=0.0, flag=False)
    model = seeded(ScGPT(config)).eval()
    ids, bins = draw([12, 7], 0, 27), [one.astype(np.float32) for one in draw([12, 7], 1, 51)]
    given = {}
    forward = model.forward
    monkeypatch.setattr(
        model,
        "forward",
        lambda batch, **kw: given.setdefault("out", forward(given.setdefault("in", batch), **kw)),
    )
    batch = Packed.of(ids, bins)
    loss = masked_values(model, -1.0, 51, torch.Generator().manual_seed(0))(batch)
    hidden = given["in"].values == -1
    assert 0 < hidden.sum() < len(hidden)
    assert not hidden[[0, 12]].any()
    both = (given["out"].expression.value, given["out"].mvc.value)
    expected = sum(F.mse_loss(one[hidden], batch.values[hidden]) for one in both) / 51**2
    torch.testing.assert_close(loss, expected)


def test_the_learning_rate_rises_stays_and_falls_to_nearly_nothing():
    recipe = Recipe(steps=100, learning_rate=1.0, warmup=0.1, decay=0.4)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[20] == rates[40] == 1.0
    assert rates[60:] == sorted(rates[60:], reverse=True)
    assert 0 < rates[-1] < 0.05


def test_every_sequence_comes_once_before_one_comes_again():
    sequences = [np.full(3 + k, k) for k in range(10)]
    batches = shuffled(sequences, 20, 100, np.random.default_rng(0))
    seen = []
    while len(seen) < 10:
        batch = next(batches)
        assert len(batch.ids) >= 20
        seen += [int(part[0]) for part in batch.split(batch.ids)]
    assert sorted(seen[:10]) == list(range(10))


def test_long_cells_give_a_random_part_behind_their_first_token():
    bins = sparse.csr_matrix(np.arange(1, 41, dtype=np.float32).reshape(2, 20))
    ids = np.arange(100, 120)
    batch = next(shuffled_cells(bins, ids, (99, -2.0), 1, 8, np.random.default_rng(0)))
    assert batch.lengths == (9,)
    assert (batch.ids[0], batch.values[0]) == (99, -2)
    offset = batch.values[1:] - (batch.ids[1:] - 100)
    assert len(set(offset.tolist())) == 1  # each gene kept its own value


def test_a_tiny_model_learns_a_pattern_by_heart(helix):
    pattern = np.tile([7, 8, 9, 10], 8)
    history = pretrain(
        helix, shuffled([pattern], 32, 64, np.random.default_rng(0)), next_letter(helix),
        Recipe(steps=60, learning_rate=2e-2), every=20,
    )  # fmt: skip
    assert history.losses[0] > 3 * history.losses[-1]
    assert history.steps == [20, 40, 60]
    assert history.tokens[-1] == 60 * 32


def test_a_loss_that_is_no_number_stops_the_run(helix):
    with torch.no_grad():
        helix.tokens.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 0"):
        pretrain(helix, iter([Packed.of(draw([5], 7, 11))]), next_letter(helix), Recipe(steps=1))


def test_contrast_is_the_cross_entropy_of_finding_the_other_view():
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = rows / rows.norm(dim=1, keepdim=True)
    terms = []
    for k in range(6):
        others = [j for j in range(6) if j != k]
        scores = torch.stack([unit[k] @ unit[j] / 0.1 for j in others])
        terms.append(-scores.log_softmax(0)[others.index(k ^ 1)])
    torch.testing.assert_close(contrast(rows, 0.1), torch.stack(terms).mean())


def test_crops_are_parts_between_the_ends():
    sequences = [np.concatenate([[0], np.arange(10, 10 + n), [2]]) for n in (1, 7, 30)]
    views = cropped(Packed.of(sequences), np.random.default_rng(0))
    assert len(views.lengths) == 6
    for k, view in enumerate(views.split(views.ids)):
        whole = sequences[k // 2]
        inner = view[1:-1].tolist()
        assert (view[0], view[-1]) == (0, 2)
        assert inner == list(range(inner[0], inner[0] + len(inner)))
        assert set(inner) <= set(whole[1:-1].tolist())
        assert len(inner) >= (len(whole) - 2) / 2
