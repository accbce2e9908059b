"""`ribozyme` as one of the programs that `embed.py` asks; the protocol is that of `peer_embed.py`.

    python our_embed.py sequences|cells|products SETTINGS

`products` embeds nothing: it multiplies matrices of a model's own shapes, for the peak that this machine has.
"""

import time
from typing import Any

import numpy as np
from peer_embed import Embed, Settings, processor_seconds, serve

BUDGET = 0.3
"""Seconds for each shape of a product, in one run."""


def sequences(settings: Settings) -> Embed:
    """Mean-pooled embeddings at our defaults. dtype."""
    import ribozyme as rz

    model = rz.load(settings["weights"], device=settings["device"], dtype=settings["dtype"])
    return model.embed


def cells(settings: Settings) -> Embed:
    """Cell embeddings at our defaults. dtype, window."""
    import warnings

    import ribozyme as rz

    warnings.simplefilter("ignore", rz.InputWarning)  # that large cells are sampled is known here
    model = rz.load(settings["weights"], device=settings["device"], dtype=settings["dtype"])
    return lambda adata: model.embed(adata, max_length=settings["window"])


def products(settings: Settings) -> Embed:
    """Floating-point operations a second, and a processor second, of `shapes` together. dtype, tokens."""
    import torch
    import torch.nn.functional as F

    device, dtype = settings["device"], getattr(torch, settings["dtype"])
    ready = []
    for wide, tall in settings["shapes"]:
        x = torch.randn(settings["tokens"], wide, device=device, dtype=dtype)
        ready.append((x, torch.randn(tall, wide, device=device, dtype=dtype)))

    def once(x: Any, weight: Any) -> tuple[float, float]:
        """Seconds and processor seconds of one product."""
        F.linear(x, weight)
        times, wall, cpu = 0, time.perf_counter(), processor_seconds()
        while time.perf_counter() - wall < BUDGET:
            for _ in range(3):
                F.linear(x, weight)
            if device != "cpu":
                torch.cuda.synchronize()
            times += 3
        return (time.perf_counter() - wall) / times, (processor_seconds() - cpu) / times

    def embed(_: Any) -> Any:
        wall, cpu = np.sum([once(x, weight) for x, weight in ready], axis=0)
        total = sum(2 * settings["tokens"] * wide * tall for wide, tall in settings["shapes"])
        return np.array([total / wall, total / cpu])

    return embed


if __name__ == "__main__":
    serve({"sequences": sequences, "cells": cells, "products": products})
