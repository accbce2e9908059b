import json
import math

import pytest

from ribozyme.errors import ConfigError
from ribozyme.models.helix.config import Config, time_step_limit


def test_the_defaults_are_the_published_hybrid():
    config = Config()
    assert (config.layers, config.inner, config.conv_dim, config.ffn_dim) == (8, 512, 768, 1024)
    assert config.causal
    assert config.max_letters is None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"layout": "MX"}, "not a string of M"),
        ({"layout": ""}, "not a string of M"),
        ({"layout": "M" * 1000}, "1,000 blocks"),
        ({"dim": 10**9}, "dim 1000000000"),
        ({"dim": 256.0}, "not a whole number"),
        ({"state": True}, "not a whole number"),
        ({"heads": 8}, "is not expand 2 x dim 256"),
        ({"groups": 3}, "not a multiple of groups"),
        ({"attention_heads": 7}, "not multiples"),
        ({"kv_heads": 5}, "not multiples"),
        ({"eps": 0}, "eps 0"),
        ({"eps": float("nan")}, "eps nan"),
        ({"bias": 1}, "neither true nor false"),
        ({"time_step_limit": (1.0, 0.5)}, "not a range"),
        ({"time_step_limit": (0.0, float("nan"))}, "not a range"),
        ({"head": "both"}, "head 'both' does not exist"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        Config(**settings)


@pytest.mark.parametrize("infinity", [math.inf, {"__float__": "Infinity"}, None, "Infinity"])
def test_infinity_is_read_as_json_files_write_it(infinity):
    assert time_step_limit([0.0, infinity]) == (0.0, math.inf)


def test_a_limit_that_is_no_pair_is_refused():
    with pytest.raises(ConfigError, match="not a pair"):
        time_step_limit(0.1)
    with pytest.raises(ConfigError, match="not a pair of numbers"):
        Config.from_dict({"time_step_limit": [0, "much"]})


@pytest.mark.parametrize("limit", [(0.0, math.inf), (0.001, 0.1)])
def test_settings_survive_strict_json(limit):
    config = Config(layout="MM+", time_step_limit=limit, head="tied")
    text = json.dumps(config.to_dict(), allow_nan=False)
    assert Config.from_dict(json.loads(text)) == config


def test_unknown_settings_are_named():
    with pytest.raises(ConfigError, match="unknown settings: width"):
        Config.from_dict({"width": 3})
