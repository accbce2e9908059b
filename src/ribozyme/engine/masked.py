"""What a masked model says of a letter that it does not see."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ribozyme.engine.device import batch_tokens
from ribozyme.engine.embed import Array, Ids, Piece
from ribozyme.engine.parts import PART, Budget
from ribozyme.engine.questions import Network
from ribozyme.packing import Packed


@dataclass(frozen=True, slots=True)
class Filled:
    """The model's letters for one masked position, likeliest first.

    position : index of the mask among the letters of its sequence, from 0
    letters, probabilities : the best letters (codons), with their probabilities under the whole vocabulary
    """

    position: int
    letters: tuple[str, ...]
    probabilities: tuple[float, ...]


def fill_masks(network: Network, piece: Piece, top: int) -> list[Filled]:
    """The `top` likeliest letters at each `<mask>` of a sequence."""
    letters = network.tokenizer.letters
    # codons with N were never trained: their rows are noise in the folders that have them
    real = np.array([k for k, x in enumerate(letters) if x[:1] != "<" and not (len(x) == 3 and "N" in x)])
    to_probabilities = network.per_letter(lambda rows: network.module.logits(rows).float().softmax(-1))
    [probabilities] = network.run([piece], to_probabilities, Budget(batch_tokens(network.device)))
    masked = np.flatnonzero(piece.ids == network.tokenizer.mask_id)
    return [_ranked(int(p), probabilities[p], letters, real, top) for p in masked]


def masked_score(network: Network, piece: Piece, budget: Budget) -> float:
    """The log-likelihood of every letter, each masked in turn, added up."""
    length = len(piece.ids)
    assert network.tokenizer.mask_id is not None  # a masked model has one
    per_group = max(1, PART * batch_tokens(network.device) // length)
    total = 0.0
    for start in range(0, length, per_group):
        places = np.arange(start, min(start + per_group, length))
        masked = [np.where(np.arange(length) == p, network.tokenizer.mask_id, piece.ids) for p in places]
        total += _group(network, masked, places, piece.ids, budget)
    return total


def _group(network: Network, masked: list[Ids], places: Ids, true: Ids, budget: Budget) -> float:
    """Log-likelihood of the true letters at `places`, one masked copy of the sequence a place."""
    place_of = {ids.tobytes(): int(p) for ids, p in zip(masked, places)}

    def compute(batch: Packed, letters: tuple[int, ...]) -> Tensor:
        rows = network.by_sequence(network.module.encode(batch), batch, letters)
        ids = network.by_sequence(batch.ids, batch, letters)
        spots = [place_of[one.cpu().numpy().tobytes()] for one in ids]
        chosen = torch.stack([row[p] for row, p in zip(rows, spots)])
        return network.module.logits(chosen).float().log_softmax(-1)

    logs = network.run([Piece(ids) for ids in masked], compute, budget)
    return float(sum(row[true[p]] for row, p in zip(logs, places)))


def _ranked(position: int, row: Array, letters: tuple[str, ...], real: Ids, top: int) -> Filled:
    best = real[np.argsort(-row[real], kind="stable")[:top]]
    return Filled(position, tuple(letters[k] for k in best), tuple(float(row[k]) for k in best))
