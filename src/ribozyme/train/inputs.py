"""What a network is fine-tuned on: inputs as ids with their special tokens, ready to be packed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ribozyme.engine.embed import Cutter, Overlong
from ribozyme.engine.sequence_parts import encode
from ribozyme.engine.sequences import SequenceModel
from ribozyme.errors import ConfigError, InputError
from ribozyme.io.sequences import read_sequences
from ribozyme.packing import Packed, plan
from ribozyme.report import Report


@dataclass(frozen=True, slots=True)
class Inputs:
    """One array of ids an input, with `special` special tokens each; `values` beside them for cells."""

    ids: Sequence[npt.NDArray[np.int64]]
    values: Sequence[npt.NDArray[np.float32]] | None = None
    special: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each input."""
        return [len(one) for one in self.ids]

    @property
    def empty(self) -> npt.NDArray[np.bool_]:
        """(n,) true for an input (a cell) in which there is nothing that the model knows."""
        return np.array(self.lengths) == self.special

    def chosen(self, rows: Sequence[int]) -> "Inputs":
        """Some of the inputs."""
        values = None if self.values is None else [self.values[k] for k in rows]
        return Inputs([self.ids[k] for k in rows], values, self.special)

    def pack(self, chosen: Sequence[int]) -> Packed:
        """The chosen inputs as one batch."""
        values = None if self.values is None else [self.values[k] for k in chosen]
        return Packed.of([self.ids[k] for k in chosen], values)


@torch.inference_mode()
def run(
    inputs: Inputs, compute: Callable[[Packed], Sequence[Tensor] | Tensor], device: torch.device, budget: int
) -> list[npt.NDArray[np.float32]]:
    """`compute` on packed batches: one array an input, in their order."""
    results: list[npt.NDArray[np.float32]] = [np.empty(0, np.float32)] * len(inputs)
    for group in plan(inputs.lengths, budget):
        for place, result in zip(group, compute(inputs.pack(group).to(device))):
            results[place] = result.float().cpu().numpy()
    return results


def read_inputs(
    model: Any,
    data: Any,
    *,
    overlong: Overlong = "error",
    longest: int | None = None,
    gene_column: str | None = None,
    strict: bool = False,
) -> Inputs:
    """Sequences or cells (whatever `embed` of the model takes) as it reads them; `Inputs` as they are.

    overlong : for sequences past the window: `error` or `truncate`; of a cell the window keeps a sample
    longest : letters of a sequence, if fewer than the model's window
    gene_column : for cells, as in `embed`

    Raises
    ------
    InputError : as `embed` of the model.
    """
    if isinstance(data, Inputs):
        return data
    if not isinstance(model, SequenceModel):
        return _read_cells(model, data, gene_column, strict)
    if overlong == "window":
        raise ConfigError("a head reads an input at once, not in windows", hint="use 'error' or 'truncate'")
    report = Report(strict)
    limits = [limit for limit in (model.config.max_letters, longest) if limit is not None]
    cutter = Cutter(min(limits, default=None), overlong, overlap=0)
    before, after = special_tokens(model)
    ids = []
    for record in read_sequences(data):
        [piece] = cutter.cut(record.name, encode(model.tokenizer, record, report), report)
        ids.append(np.concatenate([before, piece.ids, after]))
    report.finish(stacklevel=4)
    return Inputs(ids, special=len(before) + len(after))


def _read_cells(model: Any, data: Any, gene_column: str | None, strict: bool) -> Inputs:
    ids: list[npt.NDArray[np.int64]] = []
    values: list[npt.NDArray[np.float32]] = []
    for tokens in model.tokens(data, gene_column=gene_column, strict=strict):
        of_cells, their_values = tokens.split()
        ids += of_cells
        values += their_values
    if not ids:
        raise InputError("there are no cells")
    return Inputs(ids, values, special=1)


def special_tokens(model: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The ids that the model puts in front of and behind an input."""
    if not isinstance(model, SequenceModel):
        return np.array([model.vocabulary.cls_id]), np.array([], np.int64)
    return np.array(model.tokenizer.prefix, np.int64), np.array(model.tokenizer.suffix, np.int64)


def codon_marks(model: Any) -> tuple[int, ...] | None:
    """The ids of letters that mark codons, most often none; None where a token is no nucleotide."""
    letters = model.tokenizer.letters if isinstance(model, SequenceModel) else ()
    if not {*"ACGU"} <= {*letters}:
        return None
    return tuple(k for k, letter in enumerate(letters) if letter == "E")


def default_pooling(model: Any) -> str:
    """`cls` for cells, as published; the mean over the letters for sequences."""
    return "mean" if isinstance(model, SequenceModel) else "cls"
