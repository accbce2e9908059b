"""What a user holds after `load`: a sequence model with one verb a question."""

import copy
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ribozyme.engine.device import batch_tokens as default_batch_tokens
from ribozyme.engine.embed import (
    OVERLONG,
    Array,
    Compute,
    Cutter,
    Ids,
    Overlong,
    Piece,
    Tokenizer,
    letter_rows,
    run,
    stitch,
)
from ribozyme.engine.family import depth, formats_of
from ribozyme.engine.parts import PART, Budget, OnError, Part, Prepared, check_on_error, prefetch
from ribozyme.errors import ConfigError, InputError
from ribozyme.io.sequences import Record, read_or_reject, read_sequences
from ribozyme.packing import POOLINGS, Packed, Pooling, pool
from ribozyme.registry import Model
from ribozyme.report import Rejected, Report


@dataclass(frozen=True, slots=True)
class Settings:
    """How sequences become embeddings: the arguments of `embed`, each checked and decided."""

    pooling: Pooling
    layer: int
    overlong: Overlong
    batch_tokens: int
    strict: bool
    sequence_column: str | None


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the network.

    single : of inputs that fit its window; windowed : of the windows of others, joined by `whole`
    """

    single: Compute
    windowed: Compute
    whole: Callable[[Sequence[Piece], Sequence[Array]], Array]


@dataclass(frozen=True, slots=True)
class Filled:
    """The model's letters for one masked position, likeliest first.

    position : index of the mask among the letters of its sequence, from 0
    letters, probabilities : the best letters (codons), with their probabilities under the whole vocabulary
    """

    position: int
    letters: tuple[str, ...]
    probabilities: tuple[float, ...]


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
        report = Report()
        for part in self.parts(sequences, **settings):
            yield from zip(part.names, part.rows)
            report.merge(part.report)
        report.finish()

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
        budget = Budget(how.batch_tokens)
        with closing(prefetch(self.prepare(sequences, how, start=start, on_error=on_error))) as ready:
            for prepared in ready:
                yield self.compute(prepared, how, budget)

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
        budget = default_batch_tokens(self.device) if batch_tokens is None else batch_tokens
        if budget < 1:
            raise ConfigError(f"batch_tokens {batch_tokens} must be positive")
        layer = depth(layer, self.config.layers)
        return Settings(self._pooling(pooling), layer, overlong, budget, strict, sequence_column)

    def prepare(
        self, sequences: Any, how: Settings, *, start: int = 0, on_error: OnError = "fail"
    ) -> Iterator[Prepared]:
        """Inputs of one part after the other, read and cut; the network is not needed for it.

        What can be read twice is looked at as a whole first: bad inputs are errors before long work starts.
        """
        check_on_error(on_error)
        skip, cutter = on_error == "skip", self._cutter(how.overlong)
        once = isinstance(sequences, Iterator) or (isinstance(sequences, str) and sequences == "-")
        if not (skip or once or start):
            check = Report(how.strict)
            for one in read_sequences(sequences, sequence_column=how.sequence_column):
                cutter.cut(one.name, self._encode(one, check), check)
        read = read_or_reject if skip else read_sequences
        records = read(sequences, sequence_column=how.sequence_column)
        part, size = Prepared(start, start, report=Report(how.strict)), 0
        for record in islice(records, start, None):
            size += self._add(part, record, cutter, skip)
            if size >= PART * how.batch_tokens:
                yield part
                part, size = Prepared(part.end, part.end, report=Report(how.strict)), 0
        if part.end > part.start:
            yield part

    def count(self, sequences: Any, how: Settings) -> int:
        """How many inputs there are, bad ones among them."""
        return sum(1 for _ in read_or_reject(sequences, sequence_column=how.sequence_column))

    def compute(self, prepared: Prepared, how: Settings, budget: Budget) -> Part:
        """The embeddings of what `prepare` gave; `budget` learns what fits into memory."""
        rows = self._answers(prepared, self._embedding(how.pooling, how.layer), budget)
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
        each = self._per_letter(lambda rows: self.module.logits(rows))
        return list(self._results(sequences, Question(each, each, stitch), overlong, strict))

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
            asked = Question(self._next, self._next, _summed)
            sums = self._results(sequences, asked, overlong, strict)
            totals = [total / terms if terms else np.nan for total, terms in sums]
            return np.array(totals, np.float32)
        scores = [
            sum(map(self._masked_score, pieces)) / sum(len(piece.ids) for piece in pieces)
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
        letters = self.tokenizer.letters
        # codons with N were never trained: their rows are noise in the folders that have them
        real = np.array([k for k, x in enumerate(letters) if x[:1] != "<" and not (len(x) == 3 and "N" in x)])
        filled: list[list[Filled]] = []
        to_logits = self._per_letter(lambda rows: self.module.logits(rows).float().softmax(-1))
        for pieces in self._pieces(sequences, "error", strict):
            [probabilities] = self._run(pieces, to_logits, self._default_budget)
            masked = np.flatnonzero(pieces[0].ids == self.tokenizer.mask_id)
            filled.append([_ranked(int(p), probabilities[p], letters, real, top) for p in masked])
        return filled

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

    def _per_letter(self, head: Callable[[Tensor], Tensor]) -> Compute:
        def compute(batch: Packed, letters: tuple[int, ...]) -> Sequence[Tensor]:
            rows = letter_rows(self.module.encode(batch), batch, self.tokenizer)
            return list(head(rows).split(letters))

        return compute

    def _embedding(self, pooling: Pooling, layer: int) -> Question:
        def pooled(batch: Packed, letters: tuple[int, ...]) -> Tensor:
            if pooling in ("first", "last"):  # of the last layer, these rows alone are computed
                cu, after = batch.cu_seqlens.long(), len(self.tokenizer.suffix)
                rows = cu[:-1] if pooling == "first" else cu[1:] - 1 - after
                return self.module.encode(batch, layer=layer, rows=rows).float()
            rows = self.module.encode(batch, layer=layer)
            return pool(letter_rows(rows, batch, self.tokenizer), letters, pooling)

        def each(batch: Packed, letters: tuple[int, ...]) -> Sequence[Tensor]:
            rows = self.module.encode(batch, layer=layer)
            return list(letter_rows(rows, batch, self.tokenizer).split(letters))

        if pooling == "none":
            return Question(each, each, stitch)
        if pooling == "first":
            return Question(pooled, pooled, self._first_of_windows)
        return Question(pooled, each, _pool_windows(pooling))

    def _cutter(self, overlong: Overlong) -> Cutter:
        longest = self.config.max_letters
        return Cutter(longest, overlong, overlap=0 if longest is None else longest // 4)

    def _add(self, part: Prepared, record: Record | Rejected, cutter: Cutter, skip: bool) -> int:
        """One more input into a part; returns its letters."""
        position, part.end = part.end, part.end + 1
        if isinstance(record, Rejected):
            part.rejected.append(record)
            return 1
        try:
            pieces = cutter.cut(record.name, self._encode(record, part.report), part.report)
        except InputError as error:
            if not skip:
                raise
            part.rejected.append(Rejected(position, record.name, error.message))
            return 1
        part.names.append(record.name)
        part.inputs.append(pieces)
        return sum(len(piece.ids) for piece in pieces)

    def _pieces(self, sequences: Any, overlong: Overlong, strict: bool) -> Iterator[list[Piece]]:
        """Every input, cut."""
        report = Report()
        for prepared in self.prepare(sequences, self.settings(overlong=overlong, strict=strict)):
            yield from prepared.inputs
            report.merge(prepared.report)
        report.finish()

    @property
    def _default_budget(self) -> Budget:
        return Budget(default_batch_tokens(self.device))

    def _encode(self, record: Record, report: Report) -> Ids:
        try:
            ids = self.tokenizer.encode(record.sequence)
        except InputError as error:
            error.add_note(f"in sequence {record.name!r}")
            raise
        unknown = int((ids == self.tokenizer.unknown_id).sum())
        report.add("letters that the model does not know, read as unknown", record.name, unknown)
        return ids

    def _results(
        self, sequences: Any, question: Question, overlong: Overlong, strict: bool
    ) -> Iterator[Array]:
        """The answer for every input, in order."""
        how = self.settings(overlong=overlong, strict=strict)
        budget, report = Budget(how.batch_tokens), Report()
        with closing(prefetch(self.prepare(sequences, how))) as ready:
            for prepared in ready:
                yield from self._answers(prepared, question, budget)
                report.merge(prepared.report)
        report.finish()

    def _answers(self, prepared: Prepared, question: Question, budget: Budget) -> list[Array]:
        """One answer an input of a part."""
        before = budget.halved
        fits = [pieces[0] for pieces in prepared.inputs if len(pieces) == 1]
        ready = iter(self._run(fits, question.single, budget))
        answers = [
            next(ready)
            if len(pieces) == 1
            else question.whole(pieces, self._run(pieces, question.windowed, budget))
            for pieces in prepared.inputs
        ]
        if budget.halved > before:
            budget.note(prepared.report, before)
        return answers

    def _run(self, pieces: Sequence[Piece], compute: Compute, budget: Budget) -> list[Array]:
        return run(pieces, self.tokenizer, self.device, budget, compute)

    def _first_of_windows(self, pieces: Sequence[Piece], rows: Sequence[Array]) -> Array:
        """`<cls>` sees only its own window, so windows are averaged; the first letter is in the first one."""
        return np.mean(rows, axis=0, dtype=np.float32) if self.tokenizer.prefix else rows[0]

    def _next(self, batch: Packed, letters: tuple[int, ...]) -> Tensor:
        """(2,) a sequence: the log-likelihood of its letters but the first, and how many those are."""
        logs = self.module.logits(self.module.encode(batch)).float().log_softmax(-1)
        of_next = logs.gather(1, batch.ids.roll(-1)[:, None])[:, 0]
        sums = [(one[:-1].sum(), one.new_tensor(len(one) - 1)) for one in of_next.split(letters)]
        return torch.stack([torch.stack(pair) for pair in sums])

    def _masked_score(self, piece: Piece) -> float:
        """The log-likelihood of every letter, each masked in turn, added up."""
        length = len(piece.ids)
        assert self.tokenizer.mask_id is not None  # a masked model has one
        per_group = max(1, PART * default_batch_tokens(self.device) // length)
        total = 0.0
        for start in range(0, length, per_group):
            places = np.arange(start, min(start + per_group, length))
            masked = [np.where(np.arange(length) == p, self.tokenizer.mask_id, piece.ids) for p in places]
            total += self._masked_group(masked, places, piece.ids)
        return total

    def _masked_group(self, masked: list[Ids], places: Ids, true: Ids) -> float:
        """Log-likelihood of the true letters at `places`, one masked copy of the sequence a place."""
        place_of = {ids.tobytes(): int(p) for ids, p in zip(masked, places)}

        def compute(batch: Packed, letters: tuple[int, ...]) -> Tensor:
            rows = letter_rows(self.module.encode(batch), batch, self.tokenizer).split(letters)
            ids = letter_rows(batch.ids, batch, self.tokenizer).split(letters)
            spots = [place_of[one.cpu().numpy().tobytes()] for one in ids]
            chosen = torch.stack([row[p] for row, p in zip(rows, spots)])
            return self.module.logits(chosen).float().log_softmax(-1)

        logs = self._run([Piece(ids) for ids in masked], compute, self._default_budget)
        return float(sum(row[true[p]] for row, p in zip(logs, places)))


def _pool_windows(how: Pooling) -> Callable[[Sequence[Piece], Sequence[Array]], Array]:
    """Pool an input that was read in windows: its stitched letter rows, pooled as if read at once."""

    def whole(pieces: Sequence[Piece], rows: Sequence[Array]) -> Array:
        letters = torch.from_numpy(stitch(pieces, rows))
        return pool(letters, [len(letters)], how)[0].numpy()

    return whole


def _summed(pieces: Sequence[Piece], sums: Sequence[Array]) -> Array:
    return np.sum(sums, axis=0, dtype=np.float32)


def _ranked(position: int, row: Array, letters: tuple[str, ...], real: Ids, top: int) -> Filled:
    best = real[np.argsort(-row[real], kind="stable")[:top]]
    return Filled(position, tuple(letters[k] for k in best), tuple(float(row[k]) for k in best))
