"""The verbs of a sequence model: one answer for an input, whatever is around it; bad input said early."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ribozyme.engine.load import load
from ribozyme.errors import ConfigError, InputError, InputWarning

RNAS = ["GGGAAACCC", "AUGC", "A", "ACGUACGUACGUACGUA", "AUGC"]
few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@few
@given(
    sequences=st.lists(st.text("ACGU", min_size=1, max_size=60), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
    budget=st.integers(1, 200),
)
def test_an_answer_depends_on_its_input_alone(model, sequences, order, budget):
    together = model.embed(sequences, batch_tokens=budget)
    for sequence, row in zip(sequences, together):
        np.testing.assert_allclose(row, model.embed([sequence])[0], atol=1e-5, rtol=0)
    shuffled = order.sample(range(len(sequences)), len(sequences))
    again = model.embed([sequences[k] for k in shuffled], batch_tokens=budget)
    np.testing.assert_allclose(again, together[shuffled], atol=1e-5, rtol=0)


def test_pooling_none_gives_one_row_a_letter_and_mean_is_their_mean(model):
    rows = model.embed(RNAS, pooling="none")
    assert [len(r) for r in rows] == [len(s) for s in RNAS]
    np.testing.assert_allclose(model.embed(RNAS), [r.mean(0) for r in rows], atol=1e-6)
    np.testing.assert_allclose(model.embed(RNAS, pooling="max"), [r.max(0) for r in rows], atol=1e-6)
    np.testing.assert_allclose(model.embed(RNAS, pooling="last"), [r[-1] for r in rows], atol=1e-6)


def test_cls_is_first_where_there_is_one_and_an_error_elsewhere(rnafm, helix):
    np.testing.assert_array_equal(rnafm.embed(RNAS, pooling="cls"), rnafm.embed(RNAS, pooling="first"))
    with pytest.raises(ConfigError, match="pooling 'cls'"):
        helix.embed(RNAS, pooling="cls")


def test_layers_count_from_the_input_or_from_the_end(model):
    depth = model.config.layers
    np.testing.assert_array_equal(model.embed(RNAS, layer=-1), model.embed(RNAS, layer=depth))
    np.testing.assert_array_equal(model.embed(RNAS, layer=0), model.embed(RNAS, layer=-depth - 1))
    with pytest.raises(ConfigError, match=f"layer {depth + 1}"):
        model.embed(RNAS, layer=depth + 1)


def test_lower_case_and_dna_letters_are_the_same_rna(model):
    np.testing.assert_array_equal(model.embed(["acgt", "ACGU"])[0], model.embed(["ACGU"])[0])


def test_letters_the_model_does_not_know_are_counted_or_refused(model):
    with pytest.warns(InputWarning, match="2 letters that the model does not know"):
        model.embed([("odd", "ACZZGU")])
    with pytest.raises(InputError, match="odd: 2 letters"):
        model.embed([("odd", "ACZZGU")], strict=True)


def test_bad_input_is_an_error_before_any_work(model, monkeypatch):
    monkeypatch.setattr(model.module, "encode", lambda *_, **__: pytest.fail("work began"))
    for bad, words in {"": "empty", "ACGU7": "7"}.items():
        with pytest.raises(InputError, match=words):
            model.embed([*RNAS, bad])
    with pytest.raises(InputError):
        model.embed([])


def test_past_the_window_is_an_error_by_default(rnafm):
    longest = rnafm.config.max_letters
    with pytest.raises(InputError, match=f"'long' has {longest + 1} letters") as caught:
        rnafm.embed([("long", "A" * (longest + 1))])
    assert "window" in caught.value.hint


def test_truncation_keeps_the_head_and_says_how_much_went(rnafm):
    longest = rnafm.config.max_letters
    sequence = "ACGU" * longest
    with pytest.warns(InputWarning, match=f"{len(sequence) - longest} letters cut off"):
        cut = rnafm.embed([sequence], overlong="truncate")
    np.testing.assert_allclose(cut, rnafm.embed([sequence[:longest]]), atol=1e-6)


@pytest.mark.parametrize("length", [97, 150, 500])
def test_windows_cover_every_letter_and_average_overlaps(rnafm, length):
    longest = rnafm.config.max_letters
    sequence = ("GACUUAGC" * length)[:length]
    [rows] = rnafm.embed([sequence], pooling="none", overlong="window")
    assert rows.shape == (length, rnafm.config.dim)
    [alone] = rnafm.embed([sequence[:longest]], pooling="none")
    once = min(longest // 3, length - longest)  # letters that only the first window covers
    np.testing.assert_allclose(rows[:once], alone[:once], atol=1e-5)
    [mean] = rnafm.embed([sequence], overlong="window")
    np.testing.assert_allclose(mean, rows.mean(0), atol=1e-5)
    assert rnafm.embed([sequence], pooling="cls", overlong="window").shape == (1, rnafm.config.dim)


def test_a_causal_score_is_the_mean_log_likelihood_of_all_but_the_first_letter(helix):
    sequence = "GGGAAACCCU"
    [logits] = helix.logits([sequence])
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ids = helix.tokenizer.encode(sequence)
    expected = np.mean([logs[k, ids[k + 1]] for k in range(len(ids) - 1)])
    np.testing.assert_allclose(helix.score([sequence]), [expected], atol=1e-5)
    assert np.isnan(helix.score(["A"])).all()


def test_a_masked_score_is_the_mean_over_letters_masked_in_turn(rnafm):
    sequence = "GACUUG"
    expected = []
    for k, letter in enumerate(sequence):
        [logits] = rnafm.logits([sequence[:k] + "<mask>" + sequence[k + 1 :]])
        logs = logits[k] - np.log(np.exp(logits[k]).sum())
        expected.append(logs[rnafm.tokenizer.letters.index(letter)])
    np.testing.assert_allclose(rnafm.score([sequence]), [np.mean(expected)], atol=1e-5)


def test_fill_ranks_the_letters_at_each_mask(rnafm, helix):
    [two, none] = rnafm.fill(["GG<mask>A<mask>", "ACGU"], top=3)
    assert [one.position for one in two] == [2, 4]
    assert none == []
    for one in two:
        assert len(one.letters) == 3
        assert list(one.probabilities) == sorted(one.probabilities, reverse=True)
        assert not any(letter.startswith("<") for letter in one.letters)
    with pytest.raises(ConfigError, match="no <mask>"):
        helix.fill(["ACGU"])


def test_save_and_load_give_the_same_model(model, tmp_path):
    import ribozyme as rz

    model.save(tmp_path / "copy")
    again = rz.load(tmp_path / "copy", device="cpu", dtype="float32")
    np.testing.assert_array_equal(again.embed(RNAS), model.embed(RNAS))


def test_an_untrained_twin_differs_and_repeats(model):
    first, second = model.untrained(seed=3).embed(RNAS), model.untrained(seed=3).embed(RNAS)
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - model.embed(RNAS)).max() > 1e-3


def test_bfloat16_stays_close_and_ignores_its_company(model, tmp_path):
    import ribozyme as rz

    model.save(tmp_path / "copy")
    half = rz.load(tmp_path / "copy", device="cpu", dtype="bfloat16")
    together = half.embed(RNAS)
    assert cosine(together, model.embed(RNAS)).min() > 0.999
    alone = np.concatenate([half.embed([one]) for one in RNAS])
    assert cosine(together, alone).min() > 0.9999


def cosine(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_200_000_letters_are_an_error_windows_or_the_first_of_them(rnafm):
    sequence = "".join(np.random.default_rng(0).choice(list("ACGU"), 200_000))
    with pytest.raises(InputError, match=r"'long' has 200,000 letters; the model reads at most"):
        rnafm.embed([("long", sequence)])
    with pytest.warns(InputWarning, match="cut off at the 3' end"):
        first = rnafm.embed([sequence], overlong="truncate", pooling="none")[0]
    rows = rnafm.embed([sequence], overlong="window", pooling="none")[0]
    assert rows.shape == (200_000, rnafm.config.dim)
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(rows[0], first[0], atol=1e-5)


@pytest.mark.slow  # attention in one of its layers takes minutes
def test_the_hybrid_reads_200_000_letters_at_once():
    model = load("helix-mrna-mini", device="cpu")
    sequence = "".join(np.random.default_rng(0).choice(list("ACGU"), 200_000))
    rows = model.embed([sequence], pooling="none")[0]
    assert rows.shape == (200_000, model.config.dim)
    assert np.isfinite(rows).all()
    start = model.embed([sequence[:3_000]], pooling="none")[0]
    np.testing.assert_allclose(rows[:3_000], start, atol=1e-4)
