import pytest
import torch

from ribozyme.engine.sequences import SequenceModel


def _helix():
    from ribozyme.models.helix.config import Config
    from ribozyme.models.helix.model import HelixMRNA
    from ribozyme.models.helix.tokenizer import Tokenizer

    config = Config(dim=32, heads=2, head_dim=32, state=16, attention_heads=4, kv_heads=2)
    return HelixMRNA(config), Tokenizer()


def _rnafm():
    from ribozyme.models.rnafm.config import Config
    from ribozyme.models.rnafm.model import RNAFM
    from ribozyme.models.rnafm.tokenizer import Tokenizer

    config = Config(layers=2, dim=40, heads=4, ffn_dim=80, positions=100, contact_head=False)
    return RNAFM(config), Tokenizer(config.vocabulary)


MAKERS = {"helix": _helix, "rnafm": _rnafm}


@pytest.fixture(params=sorted(MAKERS), scope="module")
def model(request):
    module, tokenizer = MAKERS[request.param]()
    module.initialise(torch.Generator().manual_seed(0))
    return SequenceModel(module, tokenizer, torch.device("cpu"))


@pytest.fixture(scope="module")
def rnafm():
    module, tokenizer = _rnafm()
    module.initialise(torch.Generator().manual_seed(0))
    return SequenceModel(module, tokenizer, torch.device("cpu"))


@pytest.fixture(scope="module")
def helix():
    module, tokenizer = _helix()
    module.initialise(torch.Generator().manual_seed(0))
    return SequenceModel(module, tokenizer, torch.device("cpu"))
