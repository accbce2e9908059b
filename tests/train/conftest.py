import numpy as np
import pytest
import torch

from ribozyme.engine.sequences import SequenceModel
from ribozyme.train.training import Training


def _rnafm():
    from ribozyme.models.rnafm.config import Config
    from ribozyme.models.rnafm.model import RNAFM
    from ribozyme.models.rnafm.tokenizer import Tokenizer

    config = Config(layers=2, dim=24, heads=2, ffn_dim=48, positions=66, contact_head=False)
    return RNAFM(config), Tokenizer(config.vocabulary)


def _helix():
    from ribozyme.models.helix.config import Config
    from ribozyme.models.helix.model import HelixMRNA
    from ribozyme.models.helix.tokenizer import Tokenizer

    config = Config(layout="M+*", dim=16, heads=2, head_dim=16, state=8, attention_heads=4, kv_heads=2)
    return HelixMRNA(config), Tokenizer()


MAKERS = {"helix": _helix, "rnafm": _rnafm}


@pytest.fixture(scope="session")
def make_model():
    """From a family's name to a tiny random model."""

    def make(family: str) -> SequenceModel:
        module, tokenizer = MAKERS[family]()
        module.initialise(torch.Generator().manual_seed(0))
        return SequenceModel(module, tokenizer, torch.device("cpu"))

    return make


@pytest.fixture(scope="session")
def rnafm(make_model):
    return make_model("rnafm")


@pytest.fixture(scope="session")
def sequences():
    """32 different sequences of 4 to 20 letters."""
    generator = np.random.default_rng(0)
    return ["".join(generator.choice(list("ACGU"), generator.integers(4, 21))) for _ in range(32)]


class Killed(Exception):
    pass


@pytest.fixture
def killed(monkeypatch):
    """Run something that ends without a word at a step."""

    def run(step, call):
        original = Training.step

        def until(self, *args):
            if self.state.step == step:
                raise Killed
            return original(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(Training, "step", until)
            with pytest.raises(Killed):
                call()

    return run
