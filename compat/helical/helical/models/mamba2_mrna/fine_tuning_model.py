"""Mamba2-mRNA with a head on the mean row of the letters."""

from typing import Any

from helical.models.base_models import HelicalSequenceFineTuningModel
from helical.models.mamba2_mrna.model import Mamba2mRNA, Mamba2mRNAConfig


class Mamba2mRNAFineTuningModel(HelicalSequenceFineTuningModel, Mamba2mRNA):
    """Fine-tuning of Mamba2-mRNA."""

    pooling = "mean"

    def __init__(
        self,
        mamba2_mrna_config: Mamba2mRNAConfig | None = None,
        fine_tuning_head: Any = "classification",
        output_size: int | None = None,
    ) -> None:
        self._build(mamba2_mrna_config or Mamba2mRNAConfig(), fine_tuning_head, output_size)
