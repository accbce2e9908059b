"""RNA-FM with a head on the mean row of the letters."""

from typing import Any

from helical.models.base_models import HelicalSequenceFineTuningModel
from helical.models.rnafm.model import RNAFM, RNAFMConfig


class RNAFMFineTuningModel(HelicalSequenceFineTuningModel, RNAFM):
    """Fine-tuning of RNA-FM."""

    pooling = "mean"

    def __init__(
        self,
        rnafm_config: RNAFMConfig | None = None,
        fine_tuning_head: Any = "classification",
        output_size: int | None = None,
    ) -> None:
        self._build(rnafm_config or RNAFMConfig(), fine_tuning_head, output_size)
