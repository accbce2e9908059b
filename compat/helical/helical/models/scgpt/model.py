"""scGPT: an embedding a cell."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from helical.models.base_models import Array, HelicalBaseFoundationModel, HelicalConfig
from ribozyme.errors import ConfigError
from ribozyme.train.inputs import Inputs, read_inputs

EMB_MODES = {"cell": "mean", "cls": "cls"}


@dataclass
class scGPTConfig(HelicalConfig):
    """Settings of scGPT; sizes and special values are those of the weights.

    emb_mode : `cell`, the mean over the genes of a cell; `cls`, the `<cls>` row, as scGPT publishes it;
        `gene`, a row for each gene of each cell
    pad_token and what follows : accepted, without effect
    """

    batch_size: int = 24
    emb_mode: Literal["cell", "cls", "gene"] = "cell"
    model_name: str = "scgpt-cp"
    pad_token: Any = None
    pad_value: Any = None
    mask_value: Any = None
    nlayers: Any = None
    nheads: Any = None
    embsize: Any = None
    d_hid: Any = None
    dropout: Any = None
    n_layers_cls: Any = None
    fast_transformer: Any = None
    use_fast_transformer: Any = None
    accelerator: Any = None
    world_size: Any = None

    def __post_init__(self) -> None:
        if self.emb_mode not in (*EMB_MODES, "gene"):
            raise ConfigError(f"emb_mode {self.emb_mode!r} does not exist", hint="one of cell, cls, gene")


class scGPT(HelicalBaseFoundationModel):
    """scGPT as `ribozyme.load` gives it, under the names of helical."""

    default_configurer = scGPTConfig

    def __init__(self, configurer: scGPTConfig | None = None) -> None:
        self._load(configurer or self.default_configurer())

    def process_data(
        self,
        adata: Any,
        gene_names: str = "index",
        fine_tuning: bool = False,
        n_top_genes: int = 1_800,
        flavor: str = "seurat",
        use_batch_labels: bool = False,
        use_raw_counts: bool = True,
    ) -> Inputs:
        """Cells as the model reads them; `adata` is not changed.

        gene_names : column of `var` with the names; `index` also looks for one that says more
        fine_tuning : keep the `n_top_genes` most variable genes (needs scanpy)
        use_raw_counts : accepted; bins are of ranks, which normalisation does not change
        """
        if use_batch_labels:
            raise ConfigError("these weights have no batch labels", hint="leave out use_batch_labels")
        if fine_tuning:
            adata = adata[:, most_variable(adata, n_top_genes, flavor)]
        return read_inputs(self.native, adata, gene_column=None if gene_names == "index" else gene_names)

    def get_embeddings(self, dataset: Inputs) -> Any:
        """(n, dim), each of length 1, NaN for a cell without known genes; a list with `emb_mode="gene"`."""
        mode = self.config["emb_mode"]
        if mode == "gene":
            return self._genes(dataset)
        rows: Array = self._pooled(dataset, EMB_MODES[mode])
        rows[dataset.empty] = np.nan
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def _genes(self, dataset: Inputs) -> list[pd.Series]:
        """For each cell a Series from gene to its row."""
        names = np.array(self.native.vocabulary.tokens, dtype=object)
        rows = self._run(dataset, lambda batch: batch.split(self.model.encode(batch)))  # type: ignore[operator]
        return [
            pd.Series(list(row[1:]), index=names[ids[1:]]) for row, ids in zip(rows, dataset.ids, strict=True)
        ]


def most_variable(adata: Any, count: int, flavor: str) -> Any:
    """(genes,) true for the most variable genes, looked for in a normalised and logged copy."""
    import scanpy as sc

    copy = adata.copy()
    sc.pp.normalize_total(copy, target_sum=1e4)
    sc.pp.log1p(copy)
    sc.pp.highly_variable_genes(copy, n_top_genes=count, flavor=flavor)
    return copy.var["highly_variable"].to_numpy()
