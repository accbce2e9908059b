"""What sits on a network when it is fine-tuned: rows to features, features to outputs.

T tokens of all inputs end to end, L letters of them (tokens without the special ones), n inputs, d width of
the network, k outputs. A head reads one vector an input, (n, width), or the rows of the letters, (L, d), with
the number of letters of each input: of those `textcnn` and `attention` make one vector an input, and `linear`
and `mlp` say something of each letter.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ribozyme.errors import ConfigError
from ribozyme.packing import POOLINGS, Packed, pool
from ribozyme.train.lora import is_lora

HEADS = ("linear", "mlp", "textcnn", "attention")
ROW_HEADS = ("textcnn", "attention")
KERNELS = (3, 5, 7)
CHANNELS = 64
ATTENTIONS = 4


class Pooler(nn.Module):
    """(T, d) rows to one vector an input, without its special tokens.

    pooling : `mean`, `max`, `first`, `last` over the letters (genes); `cls`, the row of the first special
        token; `frame`, the means of `frame_means`, thrice as wide; or several joined by `+`, such as
        `mean+last`; or `none`, the rows of the letters as they are
    dim : d
    before, after : special tokens in front of and behind an input
    marks : ids of letters that mark codons; None where tokens are no nucleotides, so that there is no `frame`
    """

    def __init__(
        self, pooling: str, dim: int, before: int, after: int, marks: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        self.parts = tuple(pooling.split("+"))
        self.before, self.after, self.marks = before, after, marks or ()
        self.width = dim * sum(3 if part == "frame" else 1 for part in self.parts)
        known: set[str] = set(POOLINGS)
        known.remove("none")
        if before:
            known.add("cls")
        if marks is not None:
            known.add("frame")
        if pooling != "none" and (wrong := [part for part in self.parts if part not in known]):
            raise ConfigError(
                f"pooling {wrong[0]!r} does not exist for this model",
                hint=f"{', '.join(sorted(known))}, or several joined by +",
            )

    def forward(self, rows: Tensor, batch: Packed) -> Tensor:  # (T, d) -> (n, width), or (L, d)
        letters = [length - self.before - self.after for length in batch.lengths]
        inner = self._inner(rows, batch)
        if self.parts == ("none",):
            return inner.float()
        found = []
        for how in self.parts:
            if how == "cls":
                found.append(rows[batch.cu_seqlens[:-1].long()].float())
            elif how == "frame":
                found.append(frame_means(inner, letters, self._inner(batch.ids, batch), self.marks))
            else:
                found.append(pool(inner, letters, how))  # type: ignore[arg-type]  # checked above
        return torch.cat(found, dim=1)

    def _inner(self, rows: Tensor, batch: Packed) -> Tensor:
        """Without the special tokens."""
        return torch.cat([one[self.before : len(one) - self.after] for one in batch.split(rows)])

    def counts(self, lengths: Sequence[int]) -> tuple[int, ...]:
        """Rows that each input of so many tokens becomes."""
        if self.parts == ("none",):
            return tuple(length - self.before - self.after for length in lengths)
        return (1,) * len(lengths)


def frame_means(rows: Tensor, lengths: Sequence[int], ids: Tensor, marks: Sequence[int]) -> Tensor:
    """The mean of the first, of the second and of the third letters of all codons, side by side.

    Counted from the end, where a coding sequence has its last codon, and a 5' UTR the start of the first.

    rows : (L, d); lengths : (n,) letters of each input
    ids : (L,) of the letters; those in `marks` are passed over
    Returns (n, 3d) float32; 0 where an input is too short.
    """
    kept = torch.isin(ids, ids.new_tensor(marks), invert=True)
    sizes = torch.tensor(lengths, device=rows.device)
    owner = torch.repeat_interleave(sizes, output_size=len(rows))[kept]
    ends = owner.bincount(minlength=len(lengths)).cumsum(0)
    codon_place = 2 - (ends[owner] - 1 - torch.arange(len(owner), device=rows.device)) % 3
    slot = 3 * owner + codon_place
    counts = slot.bincount(minlength=3 * len(lengths))
    sums = torch.segment_reduce(rows[kept][slot.argsort(stable=True)].float(), "sum", lengths=counts)
    return (sums / counts.clamp(min=1)[:, None]).view(len(lengths), -1)


class Scaler(nn.Module):
    """x to (x - mean) / scale; at first x itself."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def measure(self, rows: npt.NDArray[np.float32]) -> None:
        """Take `moments` of rows (some, width)."""
        mean, scale = moments(rows)
        self.mean.copy_(torch.from_numpy(mean))
        self.scale.copy_(torch.from_numpy(scale))

    def forward(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) / self.scale


def moments(rows: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and deviation of the columns; a number that never changes has the deviation 1."""
    mean, deviation = rows.mean(0, dtype=np.float64), rows.std(0, dtype=np.float64)
    still = deviation <= 1e-6 * max(1e-30, deviation.max())
    return mean.astype(np.float32), np.where(still, 1.0, deviation).astype(np.float32)


class Network(nn.Module):
    """A trained network with a fresh head: (T tokens) to (n, k), or of a head for letters to (L, k)."""

    def __init__(self, backbone: nn.Module, pooler: Pooler, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.pooler, self.head = backbone, pooler, head
        self.scaler = Scaler(pooler.width)
        self.trained_layers: int | None = 0
        self.adapted = False  # whether there are LoRA adapters, which are trained beside the layers

    def pooled(self, batch: Packed) -> Tensor:
        """(n, width) vectors, or (L, d) rows, that the head reads; `pooler.counts` says how many an input."""
        return self.pooler(self.backbone.encode(batch), batch)  # type: ignore[operator]

    def features(self, batch: Packed) -> Sequence[Tensor]:
        """`pooled`, one (rows_i, width) an input."""
        return self.pooled(batch).split(self.pooler.counts(batch.lengths))

    def read(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """What the head says of the rows of inputs that have so many each."""
        rows = self.scaler(rows)
        return self.head(rows, counts) if isinstance(self.head, RowHead) else self.head(rows)

    def forward(self, batch: Packed) -> Tensor:
        return self.read(self.pooled(batch), self.pooler.counts(batch.lengths))

    def train_layers(self, count: int | None) -> None:
        """Let gradients into the head, adapters, and the last `count` layers with the final norm (None: all).

        Raises
        ------
        ConfigError : there are not so many layers.
        """
        deepest = self.depth
        if count is not None and not 0 <= count <= deepest:
            raise ConfigError(
                f"layers {count} cannot be trained", hint=f"0 (the head alone) to {deepest}, or None for all"
            )
        self.trained_layers = count
        self.adapted = False
        chosen = [f"layers.{k}." for k in range(deepest - (count or 0), deepest)] + ["norm."] * bool(count)
        for name, parameter in self.backbone.named_parameters():
            self.adapted |= is_lora(name)
            parameter.requires_grad_(count is None or name.startswith(tuple(chosen)) or is_lora(name))
        self.head.requires_grad_(True)

    @property
    def depth(self) -> int:
        """Layers of the backbone."""
        return len(self.backbone.layers)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> "Network":
        """As of any module, but layers that are not trained stay as at inference, without dropout."""
        super().train(mode)
        if mode and self.trained_layers is not None:
            self.backbone.eval()
            for layer in list(self.backbone.layers)[self.depth - self.trained_layers :]:  # type: ignore[arg-type]
                layer.train()
        return self


class RowHead(nn.Module):
    """A head that makes one vector of the rows of each input, and outputs of that."""

    def __init__(self, width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, outputs)

    def vectors(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """(L, d) to (n, width)."""
        raise NotImplementedError

    def forward(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        return self.out(self.dropout(self.vectors(rows, counts)))


class TextCNN(RowHead):
    """Convolutions of several widths over the letters, the largest answer of each (Kim 2014)."""

    def __init__(self, dim: int, outputs: int, channels: int = CHANNELS, dropout: float = 0.0) -> None:
        super().__init__(channels * len(KERNELS), outputs, dropout)
        self.convolutions = nn.ModuleList(nn.Conv1d(dim, channels, kernel) for kernel in KERNELS)

    def vectors(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        spread, place = apart(rows, counts, max(KERNELS) // 2)
        sizes = torch.tensor(counts, device=rows.device)
        found = []
        for kernel, convolution in zip(KERNELS, self.convolutions):
            answers = F.relu(convolution(spread.T[None]))[0].T
            inner = answers[place - kernel // 2]  # centred on each letter, zeros beyond the ends
            found.append(torch.segment_reduce(inner, "max", lengths=sizes))
        return torch.cat(found, dim=1)


class AttentionPooling(RowHead):
    """Means of the letters, weighted by what they are: softmax(W2 tanh(W1 x)) (arXiv:1703.03130)."""

    def __init__(self, dim: int, outputs: int, hidden: int = CHANNELS, dropout: float = 0.0) -> None:
        super().__init__(dim * ATTENTIONS, outputs, dropout)
        self.hidden, self.score = nn.Linear(dim, hidden), nn.Linear(hidden, ATTENTIONS)

    def vectors(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        sizes = torch.tensor(counts, device=rows.device)
        owner = torch.repeat_interleave(sizes, output_size=len(rows))
        scores = self.score(torch.tanh(self.hidden(rows)))  # (L, a)
        highest = torch.segment_reduce(scores.detach(), "max", lengths=sizes)
        weights = (scores - highest[owner]).exp()
        total = torch.segment_reduce(weights, "sum", lengths=sizes)
        mixed = (weights / total[owner])[:, :, None] * rows[:, None, :]
        return torch.segment_reduce(mixed.flatten(1), "sum", lengths=sizes)


def apart(rows: Tensor, counts: Sequence[int], gap: int) -> tuple[Tensor, Tensor]:
    """Rows with `gap` zero rows around those of each input, and the place of each row among them."""
    sizes = torch.tensor(counts, device=rows.device)
    owner = torch.repeat_interleave(sizes, output_size=len(rows))
    place = torch.arange(len(rows), device=rows.device) + gap * (owner + 1)
    spread = rows.new_zeros(len(rows) + gap * (len(counts) + 1), rows.shape[1])
    return spread.index_copy(0, place, rows), place


def make_head(
    kind: str, width: int, outputs: int, *, hidden: int | None, dropout: float, generator: torch.Generator
) -> nn.Module:
    """A head with its first weights, of which `hidden` is the inner width.

    `linear`: dropout, W x + b; `mlp`: dropout, W1 x + b1, GELU, dropout, W2 x + b2; `textcnn`; `attention`.
    """
    if kind not in HEADS:
        raise ConfigError(f"head {kind!r} does not exist", hint=f"one of {', '.join(HEADS)}")
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout {dropout} must be from 0 to below 1")
    if kind == "textcnn":
        return drawn(TextCNN(width, outputs, hidden or CHANNELS, dropout), generator)
    if kind == "attention":
        return drawn(AttentionPooling(width, outputs, hidden or CHANNELS, dropout), generator)
    sizes = [width, outputs] if kind == "linear" else [width, hidden or width, outputs]
    layers: list[nn.Module] = []
    for rows_in, rows_out in pairwise(sizes):
        linear = nn.utils.skip_init(nn.Linear, rows_in, rows_out)
        layers += [nn.Dropout(dropout), linear, nn.GELU()]
    return drawn(nn.Sequential(*layers[:-1]), generator)


def drawn(head: nn.Module, generator: torch.Generator) -> nn.Module:
    """The head with weights as torch draws them first, here from a generator of our own."""
    for part in head.modules():
        if isinstance(part, nn.Linear | nn.Conv1d):
            bound = part.weight[0].numel() ** -0.5
            for tensor in part.parameters():
                nn.init.uniform_(tensor, -bound, bound, generator=generator)
    return head
