"""Objectives against their definitions."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ribozyme.engine.sequences import SequenceModel
from ribozyme.errors import ConfigError
from ribozyme.models.helix.config import Config as HelixConfig
from ribozyme.models.helix.model import HelixMRNA
from ribozyme.models.rnafm.config import Config as RNAConfig
from ribozyme.models.rnafm.model import RNAFM
from ribozyme.models.rnafm.tokenizer import CODON, Tokenizer
from ribozyme.models.scgpt.config import Config as CellConfig
from ribozyme.models.scgpt.model import ScGPT
from ribozyme.packing import Packed
from ribozyme.train.objectives import (
    Example,
    Generative,
    Genes,
    Letters,
    MaskedLetters,
    MaskedValues,
    NextLetter,
    expressed,
    info_nce,
    squared,
)
from ribozyme.train.pretrain import Recipe, objective_of

LETTERS = (4, 5, 6, 7)


def seeded(module):
    module.initialise(torch.Generator().manual_seed(0))
    return module.eval()


@pytest.fixture(scope="module")
def helix():
    return seeded(HelixMRNA(HelixConfig(layout="M+", dim=16, heads=1, head_dim=32, state=8)))


@pytest.fixture(scope="module")
def rnafm():
    return seeded(RNAFM(RNAConfig(layers=1, dim=16, heads=2, ffn_dim=32, positions=40, contact_head=False)))


@pytest.fixture(scope="module")
def scgpt():
    return seeded(ScGPT(CellConfig(vocab_size=60, layers=2, dim=16, heads=2, ffn_dim=16, dropout=0.0)))


def draw(lengths, low=4, high=8):
    generator = np.random.default_rng(0)
    return [Example(generator.integers(low, high, n)) for n in lengths]


def cells(lengths):
    generator = np.random.default_rng(1)
    return [
        Example(generator.permutation(57)[:n], generator.integers(1, 51, n).astype(np.uint8)) for n in lengths
    ]


def keys(count, start=0):
    return np.arange(start, start + count, dtype=np.uint64)


GENES = Genes(cls_id=58, cls_value=-2.0)


def test_next_letter_is_the_cross_entropy_inside_each_sequence(helix):
    examples = draw([5, 1, 9], 7, 11)
    logs = [helix.logits(helix.encode(Packed.of([one.ids]))).log_softmax(-1) for one in examples]
    terms = [-log[k, one.ids[k + 1]] for log, one in zip(logs, examples) for k in range(len(one.ids) - 1)]
    objective = NextLetter(Letters())
    batch = objective.batch(examples, keys(3))
    assert batch.weights == {"next": 12.0}
    torch.testing.assert_close(objective(helix, batch)["next"], torch.stack(terms).sum())


def test_next_letter_weighs_its_letters(helix):
    weights = tuple(np.linspace(0.1, 2, 14))
    [example] = draw([30], 7, 11)
    objective = NextLetter(Letters(), weights)
    batch = objective.batch([example], keys(1))
    logits = helix.logits(helix.encode(batch.inputs))[:-1]
    expected = F.cross_entropy(
        logits, torch.from_numpy(example.ids[1:]), weight=torch.tensor(weights).float()
    )
    torch.testing.assert_close(objective(helix, batch)["next"] / batch.weights["next"], expected)


def masked(share=0.15, **settings):
    return MaskedLetters(Letters(prefix=(0,), suffix=(2,), **settings), 24, LETTERS, share)


def test_masked_letters_hide_80_swap_10_and_leave_10_of_a_hundred():
    [example] = draw([20_000])
    batch = masked().batch([example], keys(1))
    rows, seen = batch.targets["rows"].numpy(), batch.inputs.ids.numpy()
    clean = np.concatenate([[0], example.ids, [2]])
    np.testing.assert_array_equal(batch.targets["letters"], clean[rows])
    untouched = np.delete(seen, rows)
    np.testing.assert_array_equal(untouched, np.delete(clean, rows))
    assert len(rows) == pytest.approx(0.15 * 20_000, rel=0.1)
    assert batch.weights == {"masked": len(rows)}
    hidden = (seen[rows] == 24).mean()
    swapped = (seen[rows] != 24) & (seen[rows] != clean[rows])
    assert hidden == pytest.approx(0.8, abs=0.03)
    assert swapped.mean() == pytest.approx(0.1 * 3 / 4, abs=0.02)  # one in four is swapped for itself
    assert set(seen[rows][swapped]) == set(LETTERS)
    assert np.diff(rows).std() > 1  # not at regular distances


def test_of_mrnafm_whole_codons_are_masked():
    how = {"vocabulary": CODON, "positions": 10_010, "contact_head": False}
    config = RNAConfig(layers=1, dim=16, heads=2, ffn_dim=32, **how)
    model = SequenceModel(seeded(RNAFM(config)), Tokenizer(CODON), torch.device("cpu"))
    objective = objective_of(model, Recipe())
    assert sorted(CODON[k] for k in objective.letters) == sorted(map("".join, product("ACGU", repeat=3)))
    generator = np.random.default_rng(0)
    sequence = "".join(generator.choice(list("ACGU"), 30_000))
    batch = objective.batch([Example(model.tokenizer.encode(sequence))], keys(1))
    rows, seen = batch.targets["rows"].numpy(), batch.inputs.ids.numpy()
    asked = [CODON[k] for k in batch.targets["letters"]]
    assert asked == [sequence[3 * (row - 1) : 3 * row] for row in rows]
    assert len(rows) == pytest.approx(0.15 * 10_000, rel=0.1)
    assert (seen[rows] == CODON.index("<mask>")).mean() == pytest.approx(0.8, abs=0.04)
    assert all(len(CODON[k]) == 3 for k in seen[rows] if k != CODON.index("<mask>"))


def test_masked_letters_is_the_cross_entropy_at_the_hidden_letters(rnafm):
    objective = masked(0.5)
    batch = objective.batch(draw([9, 14]), keys(2))
    logits = rnafm.logits(rnafm.encode(batch.inputs))
    expected = F.cross_entropy(logits[batch.targets["rows"]], batch.targets["letters"], reduction="sum")
    torch.testing.assert_close(objective(rnafm, batch)["masked"], expected)


def test_only_letters_that_may_be_are_masked():
    example = Example(np.array([4, 3, 5, 3, 6, 3, 7, 18] * 50))
    batch = masked(0.99).batch([example], keys(1))
    seen = batch.inputs.ids.numpy()[1:-1]
    assert (seen[np.isin(example.ids, [3, 18])] != 24).all()
    assert set(batch.targets["letters"].tolist()) == set(LETTERS)


def test_a_batch_without_a_masked_letter_costs_nothing(rnafm):
    objective = masked(0.0)
    batch = objective.batch(draw([5]), keys(1))
    assert objective(rnafm, batch)["masked"].item() == 0
    assert batch.weights["masked"] == 0


@pytest.mark.parametrize("make", [
    lambda: (masked(longest=8), draw([30, 5, 12, 9])),
    lambda: (MaskedLetters(Letters(longest=9, views=2), 24, LETTERS, 0.3, 0.5), draw([30, 5, 12, 9])),
    lambda: (MaskedValues(Genes(cls_id=58, cls_value=-2.0, longest=8), -1.0, 51), cells([30, 5, 12, 9])),
    lambda: (Generative(Genes(cls_id=58, cls_value=-2.0, longest=8), 51), cells([30, 5, 12, 9])),
], ids=["masked", "contrast", "values", "generative"])  # fmt: skip
def test_what_is_drawn_for_an_example_does_not_depend_on_its_batch(make):
    objective, examples = make()
    views = getattr(objective.reading, "views", 1)
    whole = objective.batch(examples, keys(4))
    order = [2, 0, 3, 1]
    shuffled = objective.batch([examples[k] for k in order], keys(4)[order])
    alone = [objective.batch([one], keys(1, k)) for k, one in enumerate(examples)]
    for field in ("ids", "values"):
        if getattr(whole.inputs, field) is None:
            continue
        pieces = whole.inputs.split(getattr(whole.inputs, field))
        again = shuffled.inputs.split(getattr(shuffled.inputs, field))
        for k, one in enumerate(alone):
            own = torch.cat(list(pieces[k * views : (k + 1) * views]))
            assert torch.equal(own, getattr(one.inputs, field))
            place = order.index(k)
            assert torch.equal(own, torch.cat(list(again[place * views : (place + 1) * views])))
    for part, weight in whole.weights.items():
        assert weight == pytest.approx(sum(one.weights[part] for one in alone))
    other = objective.batch(examples, keys(4, 100))
    assert not torch.equal(other.inputs.ids, whole.inputs.ids) or not torch.equal(
        other.inputs.values, whole.inputs.values
    )


def test_long_sequences_give_a_random_part_between_the_special_tokens():
    reading = Letters(prefix=(0,), suffix=(2,), longest=10)
    example = Example(np.arange(10, 60))
    starts = set()
    for k in range(200):
        batch = reading.read([example], keys(1, k))
        ids = batch.ids.tolist()
        assert (ids[0], ids[-1], len(ids)) == (0, 2, 12)
        assert ids[1:-1] == list(range(ids[1], ids[1] + 10))
        starts.add(ids[1])
    assert {10, 50} <= starts  # both ends are reached
    assert reading.length(example) == 12


def test_two_views_are_parts_of_at_least_half():
    reading = Letters(prefix=(0,), suffix=(2,), views=2)
    examples = [Example(np.arange(10, 10 + n)) for n in (1, 7, 30)]
    batch = reading.read(examples, keys(3))
    assert len(batch.lengths) == 6
    parts = [part.tolist() for part in batch.split(batch.ids)]
    for k, part in enumerate(parts):
        inner = part[1:-1]
        assert inner == list(range(inner[0], inner[0] + len(inner)))
        assert set(inner) <= set(examples[k // 2].ids.tolist())
        assert len(inner) >= len(examples[k // 2].ids) / 2
    assert parts[4] != parts[5]


def test_an_optional_letter_is_left_out_of_its_share_of_the_sequences():
    reading = Letters(optional=(12, 0.4))
    batch = reading.read([Example(np.array([12, 7, 8, 9]))] * 500, keys(500))
    assert np.mean([length == 3 for length in batch.lengths]) == pytest.approx(0.4, abs=0.07)
    assert set(batch.lengths) == {3, 4}


def test_long_cells_give_a_sample_behind_cls_and_each_gene_keeps_its_bin():
    [cell] = cells([40])
    batch = Genes(cls_id=58, cls_value=-2.0, longest=8).read([cell], keys(1))
    assert batch.lengths == (9,)
    assert (batch.ids[0], batch.values[0]) == (58, -2)
    bins = dict(zip(cell.ids.tolist(), cell.values.tolist()))
    assert [bins[gene] for gene in batch.ids[1:].tolist()] == batch.values[1:].tolist()


def test_masked_values_is_the_squared_error_of_both_heads_at_the_hidden_bins(scgpt):
    examples = cells([12, 7])
    objective = MaskedValues(GENES, -1.0, 51)
    batch = objective.batch(examples, keys(2))
    rows = batch.targets["rows"]
    assert set(batch.inputs.values[rows].tolist()) == {-1.0}
    assert not {0, 13} & set(rows.tolist())  # `<cls>`
    clean = GENES.read(examples, keys(2))
    np.testing.assert_array_equal(clean.values[rows], batch.targets["values"])
    out = scgpt(batch.inputs, heads=("expression", "mvc"))
    sums = objective(scgpt, batch)
    for part, one in (("expression", out.expression.value), ("mvc", out.mvc.value)):
        expected = F.mse_loss(one[rows], clean.values[rows], reduction="sum") / 51**2
        torch.testing.assert_close(sums[part], expected)
    assert batch.weights == {"expression": len(rows), "mvc": len(rows)}


def test_the_sums_over_hidden_bins_equal_the_published_losses(fixtures):
    case = json.loads((fixtures / "train" / "scgpt_losses.json").read_text())
    tensors = {k: torch.tensor(v) for k, v in case.items() if isinstance(v, list)}
    mask, target = tensors["mask"], tensors["target"]
    count = mask.sum()
    mse = squared(tensors["predicted"][mask], target[mask], 1) / count
    assert mse.item() == pytest.approx(case["masked_mse_loss"], rel=1e-6)
    zero = expressed(tensors["probability"][mask], target[mask]) / count
    assert zero.item() == pytest.approx(case["criterion_neg_log_bernoulli"], rel=1e-5)


ALL = ("expression", "mvc", "zero", "mvc_zero", "classes", "batches", "similarity", "contrast")


@pytest.fixture(scope="module")
def equipped():
    """scGPT with every head that fine-tuning has a loss for, and DSBN."""
    config = CellConfig(
        vocab_size=60, layers=1, dim=16, heads=2, ffn_dim=16, dropout=0.3, flag=False,
        explicit_zero=True, n_cls=3, adversary=2, domains=2,
    )  # fmt: skip
    module = ScGPT(config)
    module.initialise(torch.Generator().manual_seed(0))
    return module


def labelled():
    given = cells([12, 7, 20, 9])
    return [replace(one, label=k % 2, kind=k % 3) for k, one in enumerate(given)]


def test_every_published_loss_of_fine_tuning_is_a_part(equipped):
    equipped.eval()
    objective = MaskedValues(GENES, -1.0, 51, parts=dict.fromkeys(ALL, 1.0), threshold=0.3)
    batch = objective.batch(labelled(), keys(4))
    labels, kinds, rows = (batch.targets[name] for name in ("labels", "kinds", "rows"))
    assert (labels.tolist(), kinds.tolist()) == ([0, 1, 0, 1], [0, 1, 2, 0])
    heads = ("expression", "mvc", "classes", "adversary")
    out = equipped(batch.inputs, heads=heads, labels=labels)
    unit = F.normalize(out.cell, dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(0).relu()
    seen = (batch.targets["values"] > 0).float()
    expected = {
        "expression": F.mse_loss(out.expression.value[rows] / 51, batch.targets["values"] / 51),
        "mvc": F.mse_loss(out.mvc.value[rows] / 51, batch.targets["values"] / 51),
        "zero": F.binary_cross_entropy(out.expression.nonzero[rows], seen),
        "mvc_zero": F.binary_cross_entropy(out.mvc.nonzero[rows], seen),
        "classes": F.cross_entropy(out.classes, kinds),
        "batches": F.cross_entropy(out.adversary, labels),
        "similarity": (1 - (cosine - 0.3) ** 2).mean(),
        "contrast": F.cross_entropy(unit @ unit.T / 0.5, torch.arange(4)),
    }
    sums = objective(equipped, batch)
    assert list(sums) == list(ALL)
    for part, value in expected.items():
        torch.testing.assert_close(sums[part] / batch.weights[part], value, msg=part)


def test_the_gradient_of_the_batch_is_reversed(equipped):
    equipped.eval()
    objective = MaskedValues(GENES, -1.0, 51, parts={"batches": 1.0})
    batch = objective.batch(labelled(), keys(4))
    objective(equipped, batch)["batches"].backward()
    reversed_, equipped.layers[0].up.weight.grad = equipped.layers[0].up.weight.grad, None
    cell = equipped(batch.inputs, labels=batch.targets["labels"]).cell
    plain = F.cross_entropy(equipped.discriminator(cell), batch.targets["labels"], reduction="sum")
    plain.backward()
    torch.testing.assert_close(equipped.layers[0].up.weight.grad, -reversed_)
    equipped.zero_grad()


def test_contrast_sees_two_draws_of_dropout(equipped):
    objective = MaskedValues(GENES, -1.0, 51, parts={"contrast": 1.0})
    batch = objective.batch(labelled(), keys(4))
    equipped.eval()
    still = objective(equipped, batch)["contrast"]
    equipped.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert objective(equipped, batch)["contrast"] > still


def test_a_part_that_does_not_exist_is_an_error():
    with pytest.raises(ConfigError, match="part 'esc' does not exist"):
        MaskedValues(GENES, -1.0, 51, parts={"esc": 1.0})


def test_generative_gives_a_share_and_asks_for_the_rest(scgpt):
    examples = cells([20, 33, 1])
    objective = Generative(GENES, 51)
    batch = objective.batch(examples, keys(3))
    given, rows = batch.targets["given"].tolist(), batch.targets["rows"]
    for k, (ids, count) in enumerate(zip(batch.inputs.split(batch.inputs.ids), given)):
        genes = len(examples[k].ids)
        assert ids[0] == 58
        assert sorted(ids[1:].tolist()) == sorted(examples[k].ids.tolist())
        assert genes + 1 - count in {int(genes * share) for share in (0.25, 0.5, 0.75)}
    assert len(rows) == sum(length - count for length, count in zip(batch.inputs.lengths, given))
    bins = [dict(zip(one.ids.tolist(), one.values.tolist())) for one in examples]
    cell = np.repeat(np.arange(3), batch.inputs.lengths)
    for row, value in zip(rows.tolist(), batch.targets["values"].tolist()):
        assert bins[cell[row]][int(batch.inputs.ids[row])] == value
    assert batch.inputs.values[rows].abs().sum() == 0  # the network cannot read the answer

    first = scgpt(batch.inputs, heads=("expression", "mvc"), given=given)
    second = scgpt(batch.inputs, given=given, cell=first.cell.detach())
    sums = objective(scgpt, batch)
    heads = {"generated": first.expression, "mvc": first.mvc, "prompted": second.expression}
    assert set(sums) == set(heads)
    for part, head in heads.items():
        expected = F.mse_loss(head.value[rows], batch.targets["values"], reduction="sum") / 51**2
        torch.testing.assert_close(sums[part], expected)


def test_every_share_of_generated_genes_occurs():
    batch = Generative(GENES, 51).batch(cells([40] * 60), keys(60))
    assert set(batch.targets["given"].tolist()) == {31, 21, 11}


def test_info_nce_is_the_cross_entropy_of_finding_the_other_view():
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = rows / rows.norm(dim=1, keepdim=True)
    terms = []
    for k in range(6):
        others = [j for j in range(6) if j != k]
        scores = torch.stack([unit[k] @ unit[j] / 0.1 for j in others])
        terms.append(-scores.log_softmax(0)[others.index(k ^ 1)])
    torch.testing.assert_close(info_nce(rows, 0.1), torch.stack(terms).mean())


def test_contrast_is_a_second_part_of_the_loss(rnafm):
    objective = MaskedLetters(Letters(views=2), 24, LETTERS, 0.3, contrast=0.5)
    batch = objective.batch(draw([12, 20, 9]), keys(3))
    rows = rnafm.encode(batch.inputs)
    means = torch.stack([part.mean(0) for part in batch.inputs.split(rows)])
    assert objective.parts == {"masked": 1.0, "contrast": 0.5}
    assert batch.weights["contrast"] == 6
    torch.testing.assert_close(objective(rnafm, batch)["contrast"] / 6, info_nce(means))
