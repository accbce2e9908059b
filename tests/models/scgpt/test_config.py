"""Settings that make no sense are refused where they are made."""

import dataclasses

import pytest
import torch

from ribozyme.errors import ConfigError
from ribozyme.models.scgpt.config import Config
from ribozyme.models.scgpt.model import ScGPT


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"dim": 510}, "dim 510 is not a multiple of heads 8"),
        ({"layers": 0}, "layers 0 is not a whole number from 1 to 1,000"),
        ({"layers": 10**9}, "layers 1000000000"),
        ({"vocab_size": -5}, "vocab_size -5"),
        ({"dim": 512.0}, "dim 512.0"),
        ({"heads": True}, "heads True"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"dropout": "0.2"}, "dropout '0.2' is not a number"),
        ({"pad_value": float("nan")}, "pad_value nan"),
        ({"value_style": "binned"}, "value_style 'binned' does not exist"),
        ({"cell_style": ["cls"]}, "cell_style"),
        ({"decoder_activation": "Softmax"}, "decoder_activation 'Softmax'"),
        ({"mvc": 1}, "mvc 1 does not exist"),
        ({"batch_norm": True, "domains": 2}, "exclude each other"),
        ({"value_style": "category"}, "mask_value -1 and pad_value -2 are no categories"),
        ({"value_style": "scaling"}, "flag"),
        ({"decoder": "affine", "batches": 2}, "takes no batch"),
        ({"mvc_joint": True}, "mvc_joint needs"),
        ({"modalities": 3}, "mvc_joint"),
        ({"mvc_style": "sum query", "explicit_zero": True}, "no zero probabilities"),
        ({"mvc_style": "concat query", "batches": 2}, "takes labels only with mvc_joint"),
    ],
)
def test_nonsense_is_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        Config(**settings)


def test_the_defaults_are_the_published_model_of_51_million_parameters():
    with torch.device("meta"):
        model = ScGPT(Config())
    assert len(model.state_dict()) == 163
    assert sum(p.numel() for p in model.parameters()) == 51_330_049


def test_a_config_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().layers = 3
