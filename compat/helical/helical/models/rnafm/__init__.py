"""RNA-FM (helical has no such model; the names follow its manner)."""

from helical.models.rnafm.fine_tuning_model import RNAFMFineTuningModel
from helical.models.rnafm.model import RNAFM, RNAFMConfig

__all__ = ["RNAFM", "RNAFMConfig", "RNAFMFineTuningModel"]
