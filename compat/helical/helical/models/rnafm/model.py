"""RNA-FM: an embedding a sequence, the mean over its letters."""

from dataclasses import dataclass

from helical.models.base_models import Array, HelicalConfig, HelicalSequenceModel
from ribozyme.train.inputs import Inputs


@dataclass
class RNAFMConfig(HelicalConfig):
    """Settings of RNA-FM.

    max_length : tokens of a sequence, `<cls>` and `<eos>` among them
    pooling : `mean`, `cls`, `first`, `last` or `max`
    """

    max_length: int = 1_024
    pooling: str = "mean"
    model_name: str = "rnafm"


class RNAFM(HelicalSequenceModel):
    """RNA-FM as `ribozyme.load` gives it, in the manner of helical."""

    special = 2  # <cls> and <eos>
    default_configurer = RNAFMConfig

    def __init__(self, configurer: RNAFMConfig | None = None) -> None:
        self._load(configurer or self.default_configurer())

    def get_embeddings(self, dataset: Inputs) -> Array:
        """(n, dim): one vector a sequence, by the `pooling` of the config."""
        return self._pooled(dataset, self.config["pooling"])
