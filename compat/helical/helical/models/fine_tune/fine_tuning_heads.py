"""The two heads as modules, for those who pass them instead of their names."""

import torch
from torch import nn

from helical.models.base_models import DROPOUT, HelicalBaseFineTuningHead


class ClassificationHead(HelicalBaseFineTuningHead):
    """Dropout and a linear layer to `num_classes` scores."""

    task = "classification"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.outputs = num_classes

    def set_dim_size(self, dim_size: int) -> None:
        self.dropout, self.linear = nn.Dropout(DROPOUT), nn.Linear(dim_size, self.outputs or 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(self.dropout(inputs))


class RegressionHead(HelicalBaseFineTuningHead):
    """Dropout and a linear layer to `num_outputs` numbers."""

    task = "regression"

    def __init__(self, num_outputs: int = 1) -> None:
        super().__init__()
        self.outputs = num_outputs

    def set_dim_size(self, dim_size: int) -> None:
        self.dropout, self.linear = nn.Dropout(DROPOUT), nn.Linear(dim_size, self.outputs or 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(self.dropout(inputs))
