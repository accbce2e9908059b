"""Helix-mRNA with a head on the mean and the last row of the letters."""

from typing import Any

from helical.models.base_models import HelicalSequenceFineTuningModel
from helical.models.helix_mrna.model import HelixmRNA, HelixmRNAConfig


class HelixmRNAFineTuningModel(HelicalSequenceFineTuningModel, HelixmRNA):
    """Fine-tuning of Helix-mRNA; `helixr_config` is another spelling of `helix_mrna_config`."""

    pooling = "mean+last"

    def __init__(
        self,
        helix_mrna_config: HelixmRNAConfig | None = None,
        fine_tuning_head: Any = "classification",
        output_size: int | None = None,
        *,
        helixr_config: HelixmRNAConfig | None = None,
    ) -> None:
        self._build(helix_mrna_config or helixr_config or HelixmRNAConfig(), fine_tuning_head, output_size)
