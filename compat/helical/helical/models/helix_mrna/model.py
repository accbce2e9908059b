"""Helix-mRNA: an embedding a letter."""

from dataclasses import dataclass

import numpy as np

from helical.models.base_models import Array, HelicalConfig, HelicalSequenceModel
from ribozyme.train.inputs import Inputs


@dataclass
class HelixmRNAConfig(HelicalConfig):
    """Settings of Helix-mRNA.

    max_length : tokens of a sequence, the end token among them
    nproc, val_batch_size : accepted, without effect
    """

    max_length: int = 12_288
    nproc: int = 1
    val_batch_size: int | None = None
    model_name: str = "helix-mrna"


class HelixmRNA(HelicalSequenceModel):
    """Helix-mRNA as `ribozyme.load` gives it, under the names of helical."""

    special = 1  # the end token
    default_configurer = HelixmRNAConfig

    def __init__(self, configurer: HelixmRNAConfig | None = None) -> None:
        self._load(configurer or self.default_configurer())

    def get_embeddings(self, dataset: Inputs) -> Array:
        """(n, longest, dim): the rows of each sequence at the end, and the end token's row last.

        Rows before a shorter sequence are zero. `[:, -2, :]` is the last letter, `[:, -1, :]` the end token.
        """
        end = np.array([self.native.tokenizer.sep_id])
        ended = Inputs([np.concatenate([ids, end]) for ids in dataset.ids])
        rows = self._run(ended, lambda batch: batch.split(self.model.encode(batch)))  # type: ignore[operator]
        padded = np.zeros((len(rows), max(ended.lengths), rows[0].shape[1]), np.float32)
        for place, row in zip(padded, rows):
            place[-len(row) :] = row
        return padded
