import pytest

from ribozyme.errors import ConfigError
from ribozyme.models.rnafm.config import Config
from ribozyme.models.rnafm.tokenizer import CODON


def test_the_defaults_are_the_published_model():
    config = Config()
    assert (config.layers, config.dim, config.heads, config.ffn_dim, len(config.vocabulary)) == (
        12,
        640,
        20,
        5120,
        25,
    )
    assert config.max_letters == 1022
    assert not config.causal
    assert not config.codon
    assert Config(vocabulary=CODON).codon


def test_settings_survive_a_dictionary():
    config = Config(layers=2, vocabulary=CODON, structure_blocks=3, eps=1e-6)
    assert Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"dim": 641}, "dim 641 is not a multiple of heads 20"),
        ({"layers": 0}, "layers 0 is not a whole number from 1"),
        ({"layers": 10**9}, "layers 1000000000 is not a whole number"),
        ({"dim": "640"}, "dim '640' is not a whole number"),
        ({"dim": 640.0}, "dim 640.0 is not a whole number"),
        ({"heads": True}, "heads True is not a whole number"),
        ({"ffn_dim": -1}, "ffn_dim -1"),
        ({"positions": 4}, "leaves no room for a letter"),
        ({"eps": 0}, "eps 0 is not a number between 0 and 1"),
        ({"eps": float("nan")}, "eps nan"),
        ({"lm_head": 1}, "lm_head 1 is neither true nor false"),
        ({"structure_threshold": 2.0}, "structure_threshold 2.0"),
        ({"vocabulary": ("A",) * 10_001}, "at most 10,000 tokens"),
        ({"vocabulary": (1, 2)}, "not a list"),
        ({"vocabulary": ("A", "<unk>")}, "lacks <cls>, <eos>, <mask>"),
        ({"vocabulary": ("A", "A", "<unk>", "<cls>", "<eos>", "<mask>")}, "a token twice"),
    ],
)
def test_nonsense_is_refused(settings, told):
    with pytest.raises(ConfigError) as caught:
        Config(**settings)
    assert told in str(caught.value)


def test_an_unknown_setting_is_named():
    with pytest.raises(ConfigError, match="unknown settings: hidden_size"):
        Config.from_dict({**Config().to_dict(), "hidden_size": 640})
    with pytest.raises(ConfigError, match="no vocabulary"):
        Config.from_dict({"layers": 2})
