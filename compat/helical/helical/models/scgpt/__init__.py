"""scGPT, embeddings of cells."""

from helical.models.scgpt.fine_tuning_model import scGPTFineTuningModel
from helical.models.scgpt.model import scGPT, scGPTConfig

__all__ = ["scGPT", "scGPTConfig", "scGPTFineTuningModel"]
