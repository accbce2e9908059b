"""RNA-FM-ResNet, the published secondary-structure network: a residual convolution over all pairs of letters.

n letters, d width of the encoder, w width after reduction, c channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ribozyme.models.rnafm.config import Config

THRESHOLDS = {"bpRNA": 0.47729617, "PDB-All": 0.33993712, "PDB-TR1": 0.07595872}
"""Training set (as in the name of a published file) to the probability above which letters pair."""


class PairBlock(nn.Module):
    """x + conv2(relu(dropout(conv1(relu(norm x))))); only the second convolution is dilated."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (1, c, n, n) -> (1, c, n, n)
        h = F.dropout(self.conv1(F.relu(self.norm(x))), 0.3, self.training)
        return x + self.conv2(F.relu(h))


class StructureHead(nn.Module):
    """Rows of one sequence to scores of all pairs.

    One sequence at a time: convolutions would carry the padding of a batch into its shorter sequences.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, channels = config.structure_width, config.structure_channels
        self.reduce = nn.Linear(config.dim, width)
        self.pair = nn.Conv2d(2 * width, channels, 1)
        self.blocks = nn.ModuleList(PairBlock(channels, 2 ** (k % 3)) for k in range(config.structure_blocks))
        self.final = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, rows: Tensor) -> Tensor:  # (n, d) -> (n, n)
        x = self.pairs(self.reduce(rows))
        for block in self.blocks:
            x = block(x)
        scores = self.final(x)[0, 0]
        return scores.triu() + scores.triu(1).T  # the half right of the diagonal speaks for both

    def pairs(self, rows: Tensor) -> Tensor:  # (n, w) -> (1, c, n, n)
        """The 1x1 convolution of (row i, row j) as A row_i + B row_j: its (2 w, n, n) input never exists."""
        first, second = self.pair.weight[:, :, 0, 0].chunk(2, dim=1)
        left, right = F.linear(rows, first, self.pair.bias), F.linear(rows, second)
        return (left.T[:, :, None] + right.T[:, None, :])[None]
