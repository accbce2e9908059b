"""Helix-mRNA, the hybrid of Mamba-2 and attention."""

from helical.models.helix_mrna.fine_tuning_model import HelixmRNAFineTuningModel
from helical.models.helix_mrna.model import HelixmRNA, HelixmRNAConfig

__all__ = ["HelixmRNA", "HelixmRNAConfig", "HelixmRNAFineTuningModel"]
