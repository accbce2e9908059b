"""Principal components of k-mers against scikit-learn, and what a sequence embedding learns from them."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer

import ribozyme as rz
from ribozyme.engine.sequences import SequenceModel
from ribozyme.errors import ConfigError, InputError
from ribozyme.models.rnafm.config import Config
from ribozyme.models.rnafm.model import RNAFM
from ribozyme.models.rnafm.tokenizer import Tokenizer
from ribozyme.pp.codons import mark_codons
from ribozyme.train.corpus import SequenceCorpus
from ribozyme.train.kmer_components import kmer_components
from ribozyme.train.pretrain import Recipe, objective_of, pretrain


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(0)
    letters = list("ACGU")
    return ["".join(rng.choice(letters, rng.integers(20, 60), p=rng.dirichlet([2] * 4))) for _ in range(140)]


@pytest.fixture(scope="module")
def rnafm():
    return rz.load("rnafm-mini")


@pytest.fixture(scope="module")
def helix():
    return rz.load("helix-mrna-mini")


def fitted(model, sequences, count):
    corpus = SequenceCorpus(source=sequences, tokenizer=model.tokenizer)
    return kmer_components(corpus, model.tokenizer.letters, count)


def ids(model, sequences):
    return [model.tokenizer.encode(one) for one in sequences]


def are_components(ours, table):
    """The first four of a table, by the root of their size, at length 2, in any order and with any signs."""
    pca = PCA(4, svd_solver="full")
    expected = pca.fit_transform(table) / np.sqrt(pca.singular_values_)
    expected *= np.sqrt(4) / np.linalg.norm(expected, axis=1, keepdims=True)
    order = np.abs(ours.T @ expected).argmax(0)
    signs = np.sign((ours[:, order] * expected).sum(0))
    np.testing.assert_allclose(ours[:, order] * signs, expected, atol=1e-3)


def test_they_are_those_of_scikit_learn_by_the_root_of_their_size(rnafm, sequences):
    words = TfidfVectorizer(analyzer="char", ngram_range=(1, 6), lowercase=False, sublinear_tf=True)
    ours = fitted(rnafm, sequences, 4).of(ids(rnafm, sequences)).numpy()
    are_components(ours, words.fit_transform(sequences).toarray())


def test_marked_codons_are_counted_beside_the_kmers(helix, sequences):
    marked = [mark_codons(one, k % 3, k % 3 + 18) for k, one in enumerate(sequences)]
    words = TfidfVectorizer(analyzer="char", ngram_range=(1, 6), lowercase=False, sublinear_tf=True)
    codons = TfidfVectorizer(token_pattern="(?<=E)[ACGU]{3}", lowercase=False, sublinear_tf=True)
    tables = [words.fit_transform(sequences), codons.fit_transform(marked)]
    ours = fitted(helix, marked, 4).of(ids(helix, marked)).numpy()
    are_components(ours, np.hstack([one.toarray() for one in tables]))


def test_a_sequence_lies_where_it_lies_in_any_company(rnafm, sequences):
    components, some = fitted(rnafm, sequences, 4), ids(rnafm, sequences[:7])
    alone = torch.cat([components.of([one]) for one in some])
    torch.testing.assert_close(components.of(some), alone, atol=1e-6, rtol=0)


def test_marks_of_codons_are_passed_over_and_unknown_letters_break(helix, sequences):
    components = fitted(helix, sequences, 4)
    plain, marked, broken = components.of(ids(helix, ["AUGGCU", "EAUGEGCU", "AUGNGCU"]))
    torch.testing.assert_close(plain, marked)
    assert not torch.allclose(plain, broken, atol=1e-3)


@pytest.mark.parametrize("family", ["rnafm", "helix"])
def test_the_loss_is_the_squared_error_of_the_embedding(family, sequences, request):
    model = request.getfixturevalue(family)
    components = fitted(model, sequences, model.config.dim)
    recipe = Recipe(share=0.0)  # nothing is hidden
    objective = objective_of(model, recipe, components)
    corpus = SequenceCorpus(source=sequences[:5], tokenizer=model.tokenizer)
    examples = list(corpus.read(np.random.default_rng(0)))
    batch = objective.batch(examples, np.arange(5, dtype=np.uint64))
    with torch.no_grad():
        found = objective(model.module, batch)["components"]
    embedded = torch.from_numpy(model.embed(sequences[:5]))
    expected = (embedded - components.of([one.ids for one in examples])).square().mean(1).sum()
    assert batch.weights["components"] == 5
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_they_are_learnt_beside_the_letters(sequences, tmp_path):
    config = Config(layers=1, dim=8, heads=2, ffn_dim=16, contact_head=False)
    network = RNAFM(config)
    network.initialise(torch.Generator().manual_seed(0))
    model = SequenceModel(network, Tokenizer(config.vocabulary), torch.device("cpu"))
    components = fitted(model, sequences, 8)

    def error():
        told, wanted = torch.from_numpy(model.embed(sequences)), components.of(ids(model, sequences))
        return (told - wanted).square().mean()

    before = error()
    recipe = Recipe(steps=60, step_tokens=1500, learning_rate=1e-2, held=0.0)
    pretrain(model, sequences, tmp_path, recipe, components=components)
    assert error() < 0.8 * before


def test_what_they_are_not_for_is_an_error(rnafm, sequences):
    with pytest.raises(ConfigError, match="k-mers are of single nucleotides"):
        kmer_components(SequenceCorpus(source=sequences, tokenizer=rnafm.tokenizer), ["AAA", "AAC"], 4)
    with pytest.raises(InputError, match="the sequences: 70 components need more than 70"):
        fitted(rnafm, sequences[:70], 70)
    with pytest.raises(ConfigError, match="not for objective 'values'"):
        objective_of(rz.load("scgpt-mini"), Recipe(), fitted(rnafm, sequences, 4))
