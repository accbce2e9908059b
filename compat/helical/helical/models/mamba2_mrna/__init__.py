"""Mamba2-mRNA, 16 Mamba-2 layers."""

from helical.models.mamba2_mrna.fine_tuning_model import Mamba2mRNAFineTuningModel
from helical.models.mamba2_mrna.model import Mamba2mRNA, Mamba2mRNAConfig

__all__ = ["Mamba2mRNA", "Mamba2mRNAConfig", "Mamba2mRNAFineTuningModel"]
