import anndata as ad
import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import accuracy_score

from ribozyme.errors import InputError
from ribozyme.train.baselines import ALPHAS, Neighbourhood, VariableGenes, baselines
from ribozyme.train.kmers import Codons, Kmers, are_coding, letters_of


def random_rna(count, length, seed=0):
    generator = np.random.default_rng(seed)
    return ["".join(generator.choice(list("ACGU"), length)) for _ in range(count)]


def test_kmers_are_counted_as_scikit_learn_counts_them():
    sequences = random_rna(6, 40)
    ours = Kmers(longest=3).transform(sequences).toarray()
    letters = "ACGU"
    words = [*letters, *(a + b for a in letters for b in letters)]
    words += [a + b + c for a in letters for b in letters for c in letters]
    theirs = CountVectorizer(analyzer="char", ngram_range=(1, 3), lowercase=False, vocabulary=words)
    np.testing.assert_array_equal(ours, theirs.transform(sequences).toarray())


def test_dna_small_letters_and_marks_are_the_same_rna_and_other_letters_break_kmers():
    counts = Kmers(longest=2).transform(["ACGU", "acgt", "EACGU", "AC-GU", "ACNGU"]).toarray()
    for row in counts[1:4]:
        np.testing.assert_array_equal(row, counts[0])
    assert counts[4].sum() == 4 + 2  # CN, NG do not count
    assert letters_of([("a", "EACGEUUA")]) == ["ACGUUA"]


def test_codons_are_counted_in_frame():
    counts = Codons().transform(["AUGGCAAUG"]).toarray()[0]
    assert counts[:64].sum() == 3
    assert counts[:64].max() == 2  # AUG
    assert counts[64:].sum() == 2


@pytest.mark.parametrize(
    ("sequences", "coding"),
    [(["AUGGCAUAA"] * 3, True), (["AUGGCAUA"], False), (["AUGUAAGCAGCA"], False), (["AUGGCA"], False)],
)
def test_coding_sequences_are_whole_codons_without_a_stop_inside(sequences, coding):
    assert are_coding(sequences) == coding


def test_every_baseline_of_sequences_learns_what_kmers_say():
    sequences = random_rna(120, 45)
    sequences = [one.replace("UAA", "CCA").replace("UAG", "CCA").replace("UGA", "CCA") for one in sequences]
    content = np.array([one.count("G") + one.count("C") for one in sequences])
    rest = slice(80, None)
    found = baselines("regression", sequences[:80])
    assert set(found) == {"k-mers", "TextCNN", "codons", "forest"}
    kmers = clone(found["k-mers"]).fit(sequences[:80], content[:80])
    assert np.corrcoef(kmers.predict(sequences[rest]), content[rest])[0, 1] > 0.8
    assert kmers[-1].chosen_.alpha in ALPHAS
    kinds = np.where(content > np.median(content), "rich", "poor")
    classes = baselines("classification", sequences[:80])["k-mers"].fit(sequences[:80], kinds[:80])
    assert accuracy_score(kinds[rest], classes.predict(sequences[rest])) > 0.8
    assert classes.predict_proba(sequences[rest]).shape == (40, 2)
    forest = found["forest"].fit(sequences[:80], content[:80])
    assert np.corrcoef(forest.predict(sequences[rest]), content[rest])[0, 1] > 0.5
    several = np.stack([kinds == "rich", kinds == "poor"], 1).astype(int)
    both = baselines("multilabel", sequences[:80])["k-mers"].fit(sequences[:80], several[:80])
    assert (both.predict(sequences[rest]) == several[rest]).mean() > 0.8
    weights = {"rich": 2.0, "poor": 1.0}  # of labels with names, which single classifiers do not know
    trees = baselines("multilabel", sequences[:80], class_weight=weights)["forest"].fit(sequences, several)
    assert trees.predict_proba(sequences[rest]).shape == (40, 2)


def test_codons_are_a_baseline_of_coding_sequences_alone():
    assert "codons" in baselines("regression", ["AUGGCAUAA"] * 4)
    assert "codons" not in baselines("regression", ["AUGGCAUA"] * 4)


def test_a_textcnn_finds_a_motif_wherever_it_is():
    sequences = random_rna(120, 30)
    generator = np.random.default_rng(1)
    kinds = []
    for k in range(120):
        place = generator.integers(0, 23)
        if k % 2:
            sequences[k] = sequences[k][:place] + "GGACUCC" + sequences[k][place + 7 :]
        kinds.append("with" if k % 2 else "without")
    cnn = baselines("classification", sequences)["TextCNN"].set_params(epochs=25, validation=0)
    cnn.fit(sequences[:90], kinds[:90])
    assert cnn.score(sequences[90:], kinds[90:]) > 0.85


def test_a_neighbourhood_knows_what_stands_around_a_letter():
    sequences = random_rna(20, 30)
    after_g = [[float(k > 0 and one[k - 1] == "G") for k in range(30)] for one in sequences]
    for one in after_g:
        one[-1] = np.nan
    found = baselines("regression", sequences, level="token")["neighbourhood"].fit(sequences, after_g)
    predicted = found.predict(sequences)
    assert np.abs(np.array(predicted)[:, :-1] - np.array(after_g)[:, :-1]).max() < 0.1
    marks = ["".join("(" if x else "." for x in np.nan_to_num(one)) for one in after_g]
    classes = Neighbourhood("classification").fit(sequences, marks)
    assert classes.predict(sequences) == marks


@pytest.fixture
def cells():
    generator = np.random.default_rng(0)
    counts = 5 + generator.poisson(5.0, (60, 30)).astype(np.float32)
    counts[::2, 3] += 60
    table = ad.AnnData(sparse.csr_matrix(counts))
    table.var_names = [f"G{k}" for k in range(30)]
    return table


def test_variable_genes_are_chosen_by_the_training_cells_alone(cells):
    chosen = VariableGenes(top=5).fit(cells[:40])
    assert "G3" in chosen.genes_
    values = chosen.transform(cells[40:])
    counts = cells.X.toarray()[40:]
    expected = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    places = [int(name[1:]) for name in chosen.genes_]
    np.testing.assert_allclose(values, expected[:, places], rtol=1e-5)
    log = cells.copy()
    log.X = sparse.csr_matrix(np.log1p(cells.X.toarray() / 7))
    np.testing.assert_allclose(
        VariableGenes(30).fit(log).transform(log), log.X.toarray(), rtol=1e-6
    )  # what is no count is taken as it is
    fewer = chosen.transform(cells[:, [3, 4]])
    assert (fewer != 0).any(0).sum() <= 2
    with pytest.raises(InputError, match="none of the genes"):
        chosen.transform(ad.AnnData(np.ones((2, 1), np.float32)))


def test_cells_have_principal_components(cells):
    kinds = np.array(["high", "low"] * 30)
    found = baselines("classification", cells)
    assert list(found) == ["PCA"]
    fitted = found["PCA"].fit(cells[:40], kinds[:40])
    assert accuracy_score(kinds[40:], fitted.predict(cells[40:])) >= 0.9


def test_the_strength_is_chosen_without_the_test_part():
    """The same training part gives the same predictor, whatever else there is."""
    sequences = random_rna(60, 30)
    y = np.array([one.count("G") for one in sequences], float)
    first = baselines("regression", sequences)["k-mers"].fit(sequences[:40], y[:40]).predict(sequences)
    moved = sequences[:40] + random_rna(20, 30, seed=5)
    again = baselines("regression", sequences)["k-mers"].fit(moved[:40], y[:40]).predict(sequences)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("counts", [(10, 9, 1), (53, 49, 2)])  # of the two, none is held back
def test_a_rare_class_does_not_stop_a_baseline(counts):
    sequences = random_rna(sum(counts), 30)
    kinds = [name for name, count in zip("abc", counts) for _ in range(count)]
    found = baselines("classification", sequences)["k-mers"].fit(sequences, kinds)
    assert set(found.predict(sequences)) <= set("abc")
