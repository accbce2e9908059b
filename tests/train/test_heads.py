"""How rows become what a head reads."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ribozyme.engine.sequences import SequenceModel
from ribozyme.errors import ConfigError
from ribozyme.models.rnafm.config import Config
from ribozyme.models.rnafm.model import RNAFM
from ribozyme.models.rnafm.tokenizer import CODON, Tokenizer
from ribozyme.packing import Packed
from ribozyme.train.finetune import FineTuned
from ribozyme.train.heads import Pooler, frame_means

MARK = 9
LETTERS = st.lists(st.sampled_from([1, 2, 3, MARK]), min_size=1, max_size=14)


@given(st.lists(LETTERS, min_size=1, max_size=5))
def test_frame_means_are_of_every_third_letter_from_the_end(sequences):
    ids = torch.tensor([letter for one in sequences for letter in one])
    rows = torch.randn(len(ids), 4)
    found = frame_means(rows, [len(one) for one in sequences], ids, (MARK,)).view(-1, 3, 4)
    for own, letters, means in zip(rows.split([len(one) for one in sequences]), sequences, found):
        unmarked = [row.numpy() for row, letter in zip(own, letters) if letter != MARK]
        for back in range(3):
            every_third = unmarked[::-1][back::3]
            expected = np.mean(every_third, axis=0) if every_third else np.zeros(4)
            np.testing.assert_allclose(means[2 - back], expected, atol=1e-6)


def test_frame_means_do_not_depend_on_what_else_is_in_the_batch():
    rows, ids = torch.randn(300, 8), torch.randint(5, (300,))
    alone = frame_means(rows[100:170], [70], ids[100:170], ())
    assert torch.equal(frame_means(rows, [100, 70, 130], ids, ())[1:2], alone)


def test_frames_stand_beside_other_poolings_without_special_tokens():
    packed = Packed.of([np.array([0, 5, 6, 7, 8, 2]), np.array([0, 5, 2])])
    rows = torch.arange(9.0)[:, None].requires_grad_()
    pooler = Pooler("last+frame+cls", 1, 1, 1, ())
    found = pooler(rows, packed)
    assert pooler.width == 5
    assert found.tolist() == [[4, 2, 3, 2.5, 0], [7, 0, 0, 7, 6]]
    found.sum().backward()
    assert rows.grad.ravel().tolist() == [1, 0.5, 1, 1, 1.5, 0, 1, 2, 0]


def test_a_tiny_model_learns_what_the_frame_of_a_letter_says(make_model, sequences):
    numbers = [sum(one[::-1][::3].count(letter) for letter in "GC") / len(one) for one in sequences]
    tuned = FineTuned(make_model("rnafm"), task="regression", pooling="frame")
    tuned.fit(sequences, numbers, layers=None, epochs=40, learning_rate=0.01, batch_size=16, decay="cosine")
    assert np.corrcoef(tuned.predict(sequences), numbers)[0, 1] > 0.99


def test_codons_have_no_frame():
    config = Config(layers=1, dim=8, heads=2, ffn_dim=8, vocabulary=CODON, contact_head=False)
    model = SequenceModel(RNAFM(config), Tokenizer(config.vocabulary), torch.device("cpu"))
    with pytest.raises(ConfigError, match="pooling 'frame' does not exist for this model"):
        FineTuned(model, task="regression", pooling="frame")
