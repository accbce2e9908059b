"""`ribozyme` as one of the programs that `prepare.py` asks; the protocol is that of `peer_embed.py`."""

import warnings
from typing import Any

import numpy as np
from peer_embed import Embed, Settings, serve
from peer_prepare import Tokens


def ours(settings: Settings) -> Embed:
    """Cells to packed batches at our defaults. weights, window, batch_tokens."""
    import ribozyme as rz
    from ribozyme.packing import plan

    warnings.simplefilter("ignore", rz.InputWarning)  # that large cells are sampled is known here
    model = rz.load(settings["weights"], device="cpu")

    def prepare(cells: Any) -> Tokens:
        found = Tokens(settings["window"])
        for tokens in model.tokens(cells, max_length=settings["window"]):
            first = len(found)
            for group in plan(tokens.lengths.tolist(), settings["batch_tokens"]):
                batch = tokens.pack(group)
                ids, values = batch.split(batch.ids), batch.split(batch.values)
                found.add(zip(np.array(group) + first, ids, values))
        return found

    return prepare


if __name__ == "__main__":
    serve({"ours": ours})
