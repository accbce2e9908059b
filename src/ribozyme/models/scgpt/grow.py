"""A network with more parts than it was trained with, which begins as the network that it was."""

import torch

from ribozyme.models.scgpt.config import Config
from ribozyme.models.scgpt.model import ScGPT

ROW_EACH = ("batches.", "classifier.out.", "discriminator.out.")
"""Parts with a row for each label: new ones are drawn. Elsewhere what is new in a known tensor is 0."""


def grown(module: ScGPT, config: Config, seed: int = 0) -> ScGPT:
    """A network of `config`, which has the parts of `module` and more, with its weights where it has them.

    New parts have starting weights, drawn from `seed`. A decoder that is now told the batch beside does not
    look at it yet, so every prediction is as before; but a new norm of the input (`domains`) changes all.
    """
    result = ScGPT(config)
    result.initialise(torch.Generator().manual_seed(seed))
    state = result.state_dict()
    for name, known in module.state_dict().items():
        tensor = state[name]
        if tensor.shape != known.shape and not name.startswith(ROW_EACH):
            tensor.zero_()
        tensor[tuple(slice(size) for size in known.shape)] = known.cpu()
    result.load_state_dict(state)
    for name, parameter in module.named_parameters():
        result.get_parameter(name).requires_grad_(parameter.requires_grad)
    result.source = module.source
    return result.to(next(module.parameters()).device).train(module.training)
