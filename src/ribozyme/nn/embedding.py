"""Tables of rows by id."""

from torch import nn


class Embedding(nn.Embedding):
    """`nn.Embedding` that draws no starting values on the meta device.

    There they mean nothing, and drawing them makes torch import its compiler: seconds, at every load.
    """

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()
