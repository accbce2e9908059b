"""What a user holds after `load`: a sequence model with one verb a question."""

import copy
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ribozyme.engine.device import batch_tokens as choose_batch_tokens
from ribozyme.engine.embed import OVERLONG, Array, Cutter, Overlong, Piece, Tokenizer
from ribozyme.engine.family import depth, formats_of
from ribozyme.engine.masked import Filled, fill_masks, masked_score
from ribozyme.engine.parts import (
    Budget,
    OnError,
    Part,
    Prepared,
    budgeted,
    computed,
    one_by_one,
    prefetch,
)
from ribozyme.engine.questions import Network, Question, embedding, letters, next_letters
from ribozyme.engine.sequence_parts import Reader, Settings
from ribozyme.errors import ConfigError
from ribozyme.io.sequences import read_or_reject
from ribozyme.packing import POOLINGS, Pooling
from ribozyme.registry import Model
from ribozyme.report import Report


class SequenceModel:
    """An RNA language model, ready to use.

    module : the network, a `torch.nn.Module`; `config` its sizes; `tokenizer` its letters
    record : its line in the registry, or None for a local file
    """

    reads: ClassVar[str] = "sequences"

    def __init__(
        self, module: nn.Module, tokenizer: Tokenizer, device: torch.device, record: Model | None = None
    ) -> None:
        self.module: Any = module.to(device).eval()  # the family's own class, with encode and logits
        self.tokenizer = tokenizer
        self.device = device
        self.record = record

    @property
    def config(self) -> Any:
        """The network's sizes (a frozen dataclass of its family)."""
        return self.module.config

    @property
    def _network(self) -> Network:
        return Network(self.module, self.tokenizer, self.device)

    def embed(
        self,
        sequences: Any,
        *,
        pooling: str = "mean",
        layer: int = -1,
        overlong: Overlong = "error",
        batch_tokens: int | None = None,
        strict: bool = False,
        sequence_column: str | None = None,
    ) -> Any:
        """Embeddings of sequences.

        Parameters
        ----------
        sequences : list of str or of (name, sequence), a Series, a path: whatever `read_sequences` takes
        pooling : `mean` or `max` over the letters; `first` (also `cls`), the `<cls>` row where the model has
            one, else the first letter; `last`, the last letter; `none`, one row a letter
        layer : 0 is the input embedding, 1 ... the layers, -1 the last with its final norm
        overlong : for inputs beyond the model's window: `error`, `truncate` or `window`
        batch_tokens : tokens of a batch; by default what suits the device
        strict : unknown letters and truncation are errors instead of one warning with counts
        sequence_column : of a table, the column with sequences; by default `sequence`

        Returns
        -------
        (n, dim) float32 in input order; with `pooling="none"` a list of (letters_i, dim).

        Raises
        ------
        InputError : no input, an empty sequence, a character that is no letter, or more than the window.
        """
        stream = self.stream(
            sequences,
            pooling=pooling,
            layer=layer,
            overlong=overlong,
            batch_tokens=batch_tokens,
            strict=strict,
            sequence_column=sequence_column,
        )
        rows = [row for _, row in stream]
        return rows if pooling == "none" else np.stack(rows)

    def stream(self, sequences: Any, **settings: Any) -> Iterator[tuple[str, Array]]:
        """As `embed`, one (name, array) at a time, in flat memory."""
        return one_by_one(self.parts(sequences, **settings))

    def parts(
        self, sequences: Any, *, start: int = 0, on_error: OnError = "fail", **settings: Any
    ) -> Generator[Part, None, None]:
        """As `embed`, one `Part` at a time; the next one is prepared while one is computed.

        Parameters
        ----------
        start : the place of the first input wanted; a place where some part ends, so that the parts from
            there on are the same as they are from the beginning
        on_error : `fail`, or `skip`, which puts bad inputs into `Part.rejected` with the reason
        settings : those of `embed`
        """
        how = self.settings(**settings)
        with closing(prefetch(self.prepare(sequences, how, start=start, on_error=on_error))) as ready:
            yield from computed(self, how, ready)

    def settings(
        self,
        *,
        pooling: str = "mean",
        layer: int = -1,
        overlong: Overlong = "error",
        batch_tokens: int | None = None,
        strict: bool = False,
        sequence_column: str | None = None,
    ) -> Settings:
        """The arguments of `embed`, checked, with what is decided by the model and the device."""
        if overlong not in OVERLONG:
            raise ConfigError(f"overlong {overlong!r} does not exist", hint=f"one of {', '.join(OVERLONG)}")
        budget = choose_batch_tokens(self.device, batch_tokens)
        layer = depth(layer, self.config.layers)
        return Settings(self._pooling(pooling), layer, overlong, budget, strict, sequence_column)

    def prepare(
        self, sequences: Any, how: Settings, *, start: int = 0, on_error: OnError = "fail"
    ) -> Iterator[Prepared]:
        """Inputs of one part after the other, read and cut; the network is not needed for it.

        What can be read twice is looked at as a whole first: bad inputs are errors before long work starts.
        """
        longest = self.config.max_letters
        cutter = Cutter(longest, how.overlong, overlap=0 if longest is None else longest // 4)
        return Reader(self.tokenizer, cutter, how).parts(sequences, start, on_error)

    def count(self, sequences: Any, how: Settings) -> int:
        """How many inputs there are, bad ones among them."""
        return sum(1 for _ in read_or_reject(sequences, sequence_column=how.sequence_column))

    def compute(self, prepared: Prepared, how: Settings, budget: Budget) -> Part:
        """The embeddings of what `prepare` gave; `budget` learns what fits into memory."""
        rows = self._answers(prepared, embedding(self._network, how.pooling, how.layer), budget)
        return Part(prepared.start, prepared.end, prepared.names, rows, prepared.rejected, prepared.report)

    def logits(self, sequences: Any, *, overlong: Overlong = "error", strict: bool = False) -> list[Array]:
        """Scores of every letter of the vocabulary at every letter of each sequence.

        Returns
        -------
        list of (letters_i, vocabulary) float32; columns are `tokenizer.letters`.

        Raises
        ------
        CheckpointError : the checkpoint came without its language-model head.
        """
        self._need_head()
        return list(self._results(sequences, letters(self._network, self.module.logits), overlong, strict))

    def score(self, sequences: Any, *, overlong: Overlong = "error", strict: bool = False) -> Array:
        """Mean log-likelihood of the letters of each sequence under the model.

        A causal model is scored on every letter but the first, given those before it; a masked model on every
        letter, masked in turn (pseudo-log-likelihood, arXiv:1910.14659).

        Returns
        -------
        (n,) float32, nats a letter, higher is likelier; NaN where a causal model is given a single letter.
        """
        self._need_head()
        if self.config.causal:
            sums = self._results(sequences, next_letters(self._network), overlong, strict)
            totals = [total / terms if terms else np.nan for total, terms in sums]
            return np.array(totals, np.float32)
        with budgeted(choose_batch_tokens(self.device), self.device) as budget:
            scores = [
                sum(masked_score(self._network, piece, budget) for piece in pieces)
                / sum(len(piece.ids) for piece in pieces)
                for pieces in self._pieces(sequences, overlong, strict)
            ]
        return np.array(scores, np.float32)

    def fill(self, sequences: Any, *, top: int = 5, strict: bool = False) -> list[list[Filled]]:
        """Rank the letters (codons) at each `<mask>` of each sequence.

        Returns
        -------
        one list a sequence, with one `Filled` a mask, in order; empty for a sequence without a mask.

        Raises
        ------
        ConfigError : a causal model has no masks.
        """
        if self.tokenizer.mask_id is None or self.config.causal:
            raise ConfigError(
                "this model predicts the next letter and has no <mask>", hint="use score, or a masked model"
            )
        self._need_head()
        return [fill_masks(self._network, piece, top) for [piece] in self._pieces(sequences, "error", strict)]

    def untrained(self, seed: int = 0) -> "SequenceModel":
        """The same network with fresh random weights, to see what training gave."""
        module = copy.deepcopy(self.module).cpu()
        module.initialise(torch.Generator().manual_seed(seed))
        return SequenceModel(module, self.tokenizer, self.device)

    def save(self, folder: str | Path, *, layout: str = "native") -> None:
        """Write weights, sizes and vocabulary; `load(folder)` gives the same model back."""
        formats_of(self.module).save(self.module, self.tokenizer, Path(folder), layout=layout)

    def _pooling(self, pooling: str) -> Pooling:
        if pooling == "cls" and self.tokenizer.prefix:
            return "first"
        if pooling not in POOLINGS:
            hint = f"one of {', '.join(POOLINGS)}" + (", cls" if self.tokenizer.prefix else "")
            raise ConfigError(f"pooling {pooling!r} does not exist for this model", hint=hint)
        return pooling

    def _need_head(self) -> None:
        self.module.logits(torch.zeros(0, self.config.dim, device=self.device))

    def _pieces(self, sequences: Any, overlong: Overlong, strict: bool) -> Iterator[list[Piece]]:
        """Every input, cut."""
        report = Report()
        for prepared in self.prepare(sequences, self.settings(overlong=overlong, strict=strict)):
            yield from prepared.inputs
            report.merge(prepared.report)
        report.finish()

    def _results(
        self, sequences: Any, question: Question, overlong: Overlong, strict: bool
    ) -> Iterator[Array]:
        """The answer for every input, in order."""
        how = self.settings(overlong=overlong, strict=strict)
        report, ready = Report(), prefetch(self.prepare(sequences, how))
        with closing(ready), budgeted(how.batch_tokens, self.device) as budget:
            for prepared in ready:
                yield from self._answers(prepared, question, budget)
                report.merge(prepared.report)
        report.finish()

    def _answers(self, prepared: Prepared, question: Question, budget: Budget) -> list[Array]:
        """One answer an input of a part."""
        fits = [pieces[0] for pieces in prepared.inputs if len(pieces) == 1]
        ready = iter(self._network.run(fits, question.single, budget))
        answers = [
            next(ready)
            if len(pieces) == 1
            else question.whole(pieces, self._network.run(pieces, question.windowed, budget))
            for pieces in prepared.inputs
        ]
        budget.note(prepared.report)
        return answers
