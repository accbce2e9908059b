"""The sizes of an RNA-FM network."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ribozyme.errors import ConfigError
from ribozyme.models.rnafm.tokenizer import RNA, check_vocabulary, reads_codons

_LARGEST = {
    "layers": 256,
    "dim": 16_384,
    "heads": 1_024,
    "ffn_dim": 131_072,
    "positions": 1_000_000,
    "structure_blocks": 256,
    "structure_width": 4_096,
    "structure_channels": 4_096,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """RNA-FM encoder and its heads; the defaults are the published model.

    positions : rows of the position table, of which 4 are not for letters (padding, unused, `<cls>`, `<eos>`)
    embed_norm : a norm after the embeddings (RNA-FM has it, mRNA-FM has not)
    token_dropout : rescale the embeddings by the share of masked letters (off in all published models)
    lm_head, contact_head : whether the checkpoint has these heads
    structure_blocks : residual blocks of the secondary-structure head, 0 for none
    structure_threshold : pairs above this probability were counted as pairs when the head was published
    vocabulary : the tokens in the order of their ids
    """

    layers: int = 12
    dim: int = 640
    heads: int = 20
    ffn_dim: int = 5120  # 8 x dim, where BERT has 4
    positions: int = 1026
    eps: float = 1e-5
    embed_norm: bool = True
    token_dropout: bool = False
    lm_head: bool = True
    contact_head: bool = True
    structure_blocks: int = 0
    structure_width: int = 128
    structure_channels: int = 64
    structure_threshold: float = 0.5
    vocabulary: tuple[str, ...] = RNA

    def __post_init__(self) -> None:
        for name, most in _LARGEST.items():
            value, least = getattr(self, name), 0 if name == "structure_blocks" else 1
            if type(value) is not int or not least <= value <= most:
                raise ConfigError(f"{name} {value!r} is not a whole number from {least} to {most:,}")
        for name in ("embed_norm", "token_dropout", "lm_head", "contact_head"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(f"{name} {getattr(self, name)!r} is neither true nor false")
        for name in ("eps", "structure_threshold"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < 1:
                raise ConfigError(f"{name} {value!r} is not a number between 0 and 1")
        if self.dim % self.heads:
            raise ConfigError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if self.positions < 5:
            raise ConfigError(f"positions {self.positions} leaves no room for a letter")
        if len(self.vocabulary) > 10_000 or not all(type(token) is str for token in self.vocabulary):
            raise ConfigError("the vocabulary is not a list of at most 10,000 tokens")
        check_vocabulary(self.vocabulary)

    @property
    def causal(self) -> bool:
        """A letter sees both sides."""
        return False

    @property
    def codon(self) -> bool:
        """Whether a token is a codon (mRNA-FM)."""
        return reads_codons(self.vocabulary)

    @property
    def max_letters(self) -> int:
        """Letters (codons) that fit between `<cls>` and `<eos>`."""
        return self.positions - 4

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Config":
        """From a `config.json` of ours.

        Raises
        ------
        ConfigError : a setting that is unknown or makes no sense.
        """
        known = {field.name for field in fields(cls)}
        unknown = [name for name in settings if name not in known]
        if unknown:
            raise ConfigError(f"unknown settings: {', '.join(unknown[:6])}")
        vocabulary = settings.get("vocabulary")
        if not isinstance(vocabulary, list | tuple):
            raise ConfigError("the settings have no vocabulary")
        return cls(**{**settings, "vocabulary": tuple(vocabulary)})

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` reads."""
        return asdict(self)
