import pytest
import torch
from torch.testing import assert_close

from ribozyme.models.rnafm.config import Config
from ribozyme.models.rnafm.structure import THRESHOLDS, StructureHead

NETWORKS = ["RNA-FM-ResNet_bpRNA.pth", "mm-ss", "mm-ss-2025"]


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_pair_scores_equal_the_published_program(published, name):
    it = published(name)
    assert len(it.answers("pairs")) == 4
    for ids, expected in it.answers("pairs"):
        scores = it.module.pair_logits(ids)
        assert_close(scores, expected, atol=1e-4, rtol=0)
        assert_close(scores, scores.T, atol=0, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_published_threshold_comes_with_the_weights(published, name):
    assert published(name).module.config.structure_threshold == THRESHOLDS["bpRNA"]


@torch.no_grad()
def test_the_first_convolution_is_that_of_all_concatenated_pairs():
    head = StructureHead(Config(structure_blocks=1, structure_width=5, structure_channels=3))
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    pairs = torch.cat([rows[:, None].expand(7, 7, 5), rows[None].expand(7, 7, 5)], -1)  # (i, j, 2 w)
    assert_close(head.pairs(rows), head.pair(pairs.permute(2, 0, 1)[None]), atol=1e-6, rtol=0)
