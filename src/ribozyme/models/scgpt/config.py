"""The settings of an scGPT network: sizes, value encoding, and which optional parts it has."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ribozyme.errors import ConfigError

ValueStyle = Literal["continuous", "category", "scaling"]
CellStyle = Literal["cls", "avg-pool", "w-pool"]
DecoderStyle = Literal["plain", "affine", "none"]
MvcStyle = Literal["inner product", "inner product, detach", "concat query", "sum query"]
Activation = Literal["ReLU", "LeakyReLU", "ELU", "GELU", "Sigmoid", "Softplus", "Tanh"]

MOST = {"layers": 1_000, "n_cls_layers": 100, "heads": 10_000}
"""Above these a settings file is damaged or hostile; all other counts stop at `MOST_OF_ANY`."""
MOST_OF_ANY = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """scGPT; the defaults are the published whole-human model.

    The multi-omic and the perturbation network of the paper are this one with other options.

    n_bins : expression bins, zero among them; categories have two more rows, for pad and mask
    mask_value, pad_value : what stands for a hidden expression, and for none (the value of `<cls>`)
    batch_norm : one batch norm of the input rows; domains : one for each batch label instead
    batches, modalities : label tables, whose rows the decoders get beside the encoder's
    perturbation : the table that marks perturbed genes; row `pert_pad_id` of it stays zero
    flag : the row that stands for a value to be generated
    decoder : expression of each gene; `affine` is a * value + b with `decoder_activation` on a and b and,
        with `adaptive_bias`, b in units of the cell's mean expression
    explicit_zero : the decoders also give the probability that a gene is expressed
    mvc : the decoder from the cell embedding; with `mvc_joint` labels enter its genes too (multi-omic)
    n_cls : classes of the cell classifier (0: it has none), of `n_cls_layers` layers
    adversary : classes of the batch discriminator behind reversed gradients (0: it has none)
    cell_style : how the heads see a cell: its `<cls>` row, the mean row, or the sum weighted by the values
    zero_genes : ids of genes that are read in every cell, at the value 0 where it does not express them, and
        no others; by default the genes that a cell expresses are read
    batch_names, class_names : what the batch labels and the classes are called, or nothing
    """

    vocab_size: int = 60_697
    layers: int = 12
    dim: int = 512
    heads: int = 8
    ffn_dim: int = 512
    dropout: float = 0.2
    value_style: ValueStyle = "continuous"
    n_bins: int = 51
    mask_value: float = -1
    pad_value: float = -2
    batch_norm: bool = False
    domains: int = 0
    batches: int = 0
    modalities: int = 0
    perturbation: bool = False
    pert_pad_id: int = 0
    flag: bool = True
    decoder: DecoderStyle = "plain"
    decoder_activation: Activation | None = None
    adaptive_bias: bool = False
    explicit_zero: bool = False
    mvc: bool = True
    mvc_style: MvcStyle = "inner product"
    mvc_joint: bool = False
    n_cls: int = 0
    n_cls_layers: int = 3
    adversary: int = 0
    cell_style: CellStyle = "cls"
    zero_genes: tuple[int, ...] = ()
    batch_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("vocab_size", "layers", "dim", "heads", "ffn_dim", "n_cls_layers"):
            self._count(name, least=1)
        for name in ("domains", "batches", "modalities", "n_cls", "adversary"):
            self._count(name, least=0)
        self._count("n_bins", least=3)
        self._one_of("value_style", get_args(ValueStyle))
        self._one_of("cell_style", get_args(CellStyle))
        self._one_of("decoder", get_args(DecoderStyle))
        self._one_of("mvc_style", get_args(MvcStyle))
        self._one_of("decoder_activation", (None, *get_args(Activation)))
        self._one_of("pert_pad_id", (0, 1, 2))
        for name in (
            "batch_norm",
            "perturbation",
            "flag",
            "adaptive_bias",
            "explicit_zero",
            "mvc",
            "mvc_joint",
        ):
            self._one_of(name, (False, True))
        for name in ("dropout", "mask_value", "pad_value"):
            self._number(name)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout {self.dropout} is not from 0 to below 1")
        if self.dim % self.heads:
            raise ConfigError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        self._genes()
        self._names("batch_names", self.batches, self.domains, self.adversary)
        self._names("class_names", self.n_cls)
        self._agrees()

    @property
    def labelled(self) -> bool:
        """Whether the decoders get a row of labels beside the encoder's row."""
        return bool(self.batches or self.modalities)

    @property
    def known_batches(self) -> tuple[str, ...]:
        """What its batch labels are called; where nobody said, they are numbers from 0 on."""
        count = max(self.batches, self.domains, self.adversary)
        return self.batch_names or tuple(map(str, range(count)))

    @property
    def known_classes(self) -> tuple[str, ...]:
        """What its classes are called, in the same way."""
        return self.class_names or tuple(map(str, range(self.n_cls)))

    def _agrees(self) -> None:
        if self.batch_norm and self.domains:
            raise ConfigError("batch_norm and domains exclude each other: the input is normed once")
        if self.value_style == "category" and not (
            0 <= self.mask_value < self.n_bins + 2 and 0 <= self.pad_value < self.n_bins + 2
        ):
            raise ConfigError(
                f"mask_value {self.mask_value} and pad_value {self.pad_value} are no categories",
                hint=f"with value_style 'category' they are {self.n_bins + 1} and {self.n_bins}",
            )
        if self.value_style == "scaling" and self.flag:
            raise ConfigError("flag: a scaled gene has no value row to put a flag in the place of")
        if self.decoder == "affine" and self.labelled:
            raise ConfigError("decoder 'affine' takes no batch or modality labels")
        if not self.mvc:
            return
        if self.mvc_joint and not self.labelled:
            raise ConfigError("mvc_joint needs batches or modalities to join")
        if self.modalities and not self.mvc_joint:
            raise ConfigError("modalities enter the mvc decoder on the side of the genes too: mvc_joint")
        if self.mvc_style in ("concat query", "sum query"):
            if self.explicit_zero:
                raise ConfigError(f"mvc_style {self.mvc_style!r} has no zero probabilities")
            if self.labelled and not self.mvc_joint:
                raise ConfigError(f"mvc_style {self.mvc_style!r} takes labels only with mvc_joint")

    def _count(self, name: str, least: int) -> None:
        value, most = getattr(self, name), MOST.get(name, MOST_OF_ANY)
        if type(value) is not int or not least <= value <= most:
            raise ConfigError(f"{name} {value!r} is not a whole number from {least} to {most:,}")

    def _genes(self) -> None:
        value = self.zero_genes
        ids = value if isinstance(value, list | tuple) else [None]
        if not all(type(one) is int and 0 <= one < self.vocab_size for one in ids):
            raise ConfigError(f"zero_genes {str(value)[:80]} is not a list of genes of the vocabulary")
        object.__setattr__(self, "zero_genes", tuple(sorted(set(ids))))  # of a settings file it is a list

    def _names(self, name: str, *counts: int) -> None:
        """A tuple of names, as many as each part that there is has labels."""
        value = getattr(self, name)
        names = tuple(value) if isinstance(value, list | tuple) else (None,)
        if not all(isinstance(one, str) for one in names) or len(set(names)) != len(names):
            raise ConfigError(f"{name} {value!r} is not a list of different names")
        if names and any(count not in (0, len(names)) for count in counts):
            raise ConfigError(f"there are {len(names)} {name} for {max(counts)} labels")
        object.__setattr__(self, name, names)  # of a settings file it is a list

    def _number(self, name: str) -> None:
        value = getattr(self, name)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ConfigError(f"{name} {value!r} is not a number")

    def _one_of(self, name: str, choices: tuple[object, ...]) -> None:
        value = getattr(self, name)
        if not any(
            value is choice or (type(value) is type(choice) and value == choice) for choice in choices
        ):
            raise ConfigError(
                f"{name} {value!r} does not exist", hint=f"one of {', '.join(map(str, choices))}"
            )
