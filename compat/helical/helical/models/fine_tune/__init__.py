"""Heads for fine-tuning."""

from helical.models.fine_tune.fine_tuning_heads import ClassificationHead, RegressionHead

__all__ = ["ClassificationHead", "RegressionHead"]
