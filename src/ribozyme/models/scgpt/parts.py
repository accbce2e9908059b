"""Which parts an scGPT network has, and how large, read off the names and shapes of its tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ribozyme.errors import CheckpointError

INDISPENSABLE = ("genes.table.weight", "layers.0.norm1.weight", "layers.0.up.weight")
"""Without these there are no sizes to read off."""


class Shapes:
    """Sizes and counts of our tensor names, 0 where there is none."""

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.path, self.shapes = path, shapes

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def size(self, name: str, axis: int) -> int:
        """Length of an axis."""
        shape = self.shapes.get(name)
        if shape is not None and len(shape) <= axis:
            raise CheckpointError(f"{self.path}: {name} has shape {shape}, with too few axes")
        return 0 if shape is None else shape[axis]

    def count(self, prefix: str, suffix: str) -> int:
        """How many names begin and end like this."""
        return sum(name.startswith(prefix) and name.endswith(suffix) for name in self.shapes)

    def any(self, prefix: str) -> bool:
        """Whether a name begins like this."""
        return any(name.startswith(prefix) for name in self.shapes)


def parts(shapes: Shapes) -> dict[str, Any]:
    """Which parts a network has, and how large, by the names and shapes of its tensors."""
    if missing := [name for name in INDISPENSABLE if name not in shapes]:
        raise CheckpointError(
            f"{shapes.path}: the tensors do not fit the model; missing: {', '.join(missing)}",
            hint="the file is incomplete or of another model",
        )
    dim = shapes.size("genes.table.weight", 1)
    classes = shapes.size("classifier.out.weight", 0)
    found: dict[str, Any] = {
        "vocab_size": shapes.size("genes.table.weight", 0),
        "dim": dim,
        "layers": shapes.count("layers.", ".norm1.weight"),
        "ffn_dim": shapes.size("layers.0.up.weight", 0),
        "batch_norm": "input_norm.running_mean" in shapes,
        "domains": shapes.count("domains.norms.", ".running_mean"),
        "batches": shapes.size("batches.table.weight", 0),
        "modalities": shapes.size("modalities.table.weight", 0),
        "perturbation": "perturbations.weight" in shapes,
        "flag": "flags.weight" in shapes,
        "explicit_zero": shapes.any("decoder.nonzero.") or shapes.any("decoder.coeff.nonzero."),
        "n_cls": classes,
        "adversary": shapes.size("discriminator.out.weight", 0),
        "decoder": "affine"
        if shapes.any("decoder.coeff.")
        else "plain"
        if shapes.any("decoder.")
        else "none",
        "mvc": shapes.any("mvc_decoder."),
        "mvc_joint": shapes.size("mvc_decoder.gene2query.weight", 1) == 2 * dim,
        "mvc_style": _mvc_style(shapes),
        "value_style": "scaling",
    }
    if classes:  # a Linear and a LayerNorm in each hidden layer
        found["n_cls_layers"] = shapes.count("classifier.layers.", ".weight") // 2 + 1
    if shapes.any("values.up."):
        found["value_style"] = "continuous"
    elif shapes.any("values."):
        found |= {"value_style": "category", "n_bins": shapes.size("values.table.weight", 0) - 2}
    return found


def _mvc_style(shapes: Shapes) -> str:
    if "mvc_decoder.fc1.weight" not in shapes:
        return "inner product"
    wide = shapes.size("mvc_decoder.fc1.weight", 1) > shapes.size("mvc_decoder.gene2query.weight", 1)
    return "concat query" if wide else "sum query"
