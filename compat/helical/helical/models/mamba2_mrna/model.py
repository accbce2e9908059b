"""Mamba2-mRNA: an embedding a sequence, the row of its last letter."""

from dataclasses import dataclass

from helical.models.base_models import Array, HelicalConfig, HelicalSequenceModel
from ribozyme.train.inputs import Inputs


@dataclass
class Mamba2mRNAConfig(HelicalConfig):
    """Settings of Mamba2-mRNA.

    max_length : tokens of a sequence, the end token among them
    nproc, val_batch_size : accepted, without effect
    """

    max_length: int = 8_192
    nproc: int = 1
    val_batch_size: int | None = None
    model_name: str = "mamba2-mrna"


class Mamba2mRNA(HelicalSequenceModel):
    """Mamba2-mRNA as `ribozyme.load` gives it, under the names of helical."""

    special = 1  # the end token
    default_configurer = Mamba2mRNAConfig

    def __init__(self, configurer: Mamba2mRNAConfig | None = None) -> None:
        self._load(configurer or self.default_configurer())

    def get_embeddings(self, dataset: Inputs) -> Array:
        """(n, dim): the row of the last letter of each sequence."""
        return self._pooled(dataset, "last")
