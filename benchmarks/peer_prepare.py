"""How the published programs bring cells into the form that their networks read; see `prepare.py`.

    python peer_prepare.py scgpt|helical SETTINGS

Runs in the environment of the peer, by the protocol of `peer_embed.py`, and imports nothing of ours. Each
program runs its own call for embeddings, from cells on; only its network is one that answers zeros at once,
and notes what it was given.
"""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from peer_embed import Embed, Settings, middle_of_ties, serve, without_extras


class Tokens:
    """Tokens of cells as tensors; one array, with the genes of each cell in order, when it is asked for."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.cells: list[tuple[int, Any, Any]] = []

    def __len__(self) -> int:
        return len(self.cells)

    def add(self, cells: Iterable[tuple[int, Any, Any]]) -> None:
        """(place of the cell, ids, values)."""
        self.cells.extend(cells)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        """(cells, window, 2) ids and values, ordered by id; -1 where there is nothing, or padding."""
        out = np.full((len(self), self.window, 2), -1, dtype=np.float32)
        for place, ids, values in self.cells:
            there = values != -2 if len(values) < 2 else np.append(True, values[1:] != -2)
            ids, values = np.asarray(ids)[np.asarray(there)], np.asarray(values)[np.asarray(there)]
            order = np.argsort(ids)
            out[place, : len(ids), 0], out[place, : len(ids), 1] = ids[order], values[order]
        return out


def silent(window: int) -> Any:
    """A network that answers zeros, and notes what it was given in `tokens`."""
    import torch

    class Silent(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = torch.nn.Parameter(torch.ones(1))
            self.tokens = Tokens(window)

        def _encode(self, ids: Any, values: Any, **_: Any) -> Any:
            first = len(self.tokens)
            self.tokens.add((first + k, *pair) for k, pair in enumerate(zip(ids, values)))
            return torch.ones(*ids.shape, 1)

    return Silent()


def scgpt(settings: Settings) -> Embed:
    """`embed_data` without the loading of the model. vocab, window, batch; workers: False for none."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))
    import make_scgpt

    make_scgpt.published()  # imports it without what it needs for other things
    without_extras()
    from scgpt.tasks.cell_emb import get_batch_cell_embeddings

    vocab = json.loads(Path(settings["vocab"]).read_text())
    middle_of_ties()

    def prepare(cells: Any) -> Any:
        if not settings["workers"]:
            os.sched_getaffinity = lambda _: set()  # it starts a worker for each core
        model = silent(settings["window"])
        known = np.array([gene in vocab for gene in cells.var_names])
        cells = cells[:, known]
        get_batch_cell_embeddings(
            cells,
            model=model,
            vocab=vocab,
            max_length=settings["window"],
            batch_size=settings["batch"],
            model_configs={"pad_token": "<pad>", "pad_value": -2, "embsize": 1},
            gene_ids=np.array([vocab[gene] for gene in cells.var_names]),
        )
        return model.tokens

    return prepare


def helical(settings: Settings) -> Embed:
    """`process_data` and `get_embeddings` of helical. vocab, window, batch."""
    from helical.models.scgpt.model import scGPT
    from helical.models.scgpt.scgpt_config import scGPTConfig

    config = scGPTConfig(batch_size=settings["batch"], emb_mode="cls", device="cpu").config
    config |= {"MAX_LENGTH": settings["window"], "embsize": 1}
    model = object.__new__(scGPT)  # its __init__ would fetch weights
    super(scGPT, model).__init__()
    model.config, model.accelerator = config, None
    model.vocab = json.loads(Path(settings["vocab"]).read_text())
    middle_of_ties()

    def prepare(cells: Any) -> Any:
        model.model = silent(settings["window"])
        model.get_embeddings(model.process_data(cells.copy()))
        return model.model.tokens

    return prepare


if __name__ == "__main__":
    serve({"scgpt": scgpt, "helical": helical})
