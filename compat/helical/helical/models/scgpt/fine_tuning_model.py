"""scGPT with a head on the `<cls>` row."""

from typing import Any

import torch
from torch import nn

from helical.models.base_models import HelicalBaseFineTuningModel, Optimizer
from helical.models.scgpt.model import scGPT, scGPTConfig


class scGPTFineTuningModel(HelicalBaseFineTuningModel, scGPT):
    """Fine-tuning of scGPT."""

    pooling = "cls"

    def __init__(
        self,
        scGPT_config: scGPTConfig | None = None,
        fine_tuning_head: Any = "classification",
        output_size: int | None = None,
    ) -> None:
        self._build(scGPT_config or scGPTConfig(), fine_tuning_head, output_size)

    def train(  # type: ignore[override]
        self,
        train_input_data: Any = True,
        train_labels: Any = None,
        validation_input_data: Any = None,
        validation_labels: Any = None,
        optimizer: Optimizer = torch.optim.AdamW,
        optimizer_params: dict[str, Any] = {"lr": 1e-4},  # noqa: B006  # as in the original; never written to
        loss_function: Any = None,
        epochs: int = 1,
        freeze_layers: int = 2,
        lr_scheduler_params: dict[str, Any] | None = None,
        *,
        mode: bool | None = None,
    ) -> Any:
        """Train on processed cells; `train(True)` and `train(False)` set the mode, as of any module.

        freeze_layers : the first layers, with the embeddings below them, that stay as they are; 0 trains all
        loss_function, lr_scheduler_params : as for the models of sequences
        """
        if mode is not None or isinstance(train_input_data, bool):
            return nn.Module.train(self, bool(train_input_data if mode is None else mode))
        deepest = self.native.config.layers
        self._fit(
            train_input_data,
            train_labels,
            validation_input_data,
            validation_labels,
            deepest - freeze_layers if freeze_layers else None,
            optimizer,
            optimizer_params,
            loss_function,
            epochs,
            lr_scheduler_params,
        )
        return None
