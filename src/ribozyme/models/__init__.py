"""`ribozyme.models()` lists every model that `load` knows by name, as a tuple of `registry.Model`.

In here is one folder a family: config.py, tokenizer.py (or vocab.py), model.py, formats.py.

What the engine asks of a sequence family (`helix`, `rnafm`):

`formats.recognises(checkpoint) -> bool`, `formats.load(checkpoint) -> (module, tokenizer)`,
`formats.save(module, tokenizer, folder)`.

The module: `module.config` (with `layers`, `dim`, `causal`, `max_letters`),
`module.encode(batch: Packed, layer=-1, *, rows=None) -> (T, d)`, or (m, d) of the m tokens `rows`, and
`module.logits(rows) -> (T, vocabulary)`.

The tokenizer: `letters` (id to string), `prefix` and `suffix` (special ids around a sequence),
`mask_id` (or None), `unknown_id`, and `encode(sequence) -> int64 array`, one id a letter (or codon).

`scgpt` reads cells: see `models/scgpt/model.py`.
"""

import sys
from types import ModuleType

from ribozyme import registry


class _Models(ModuleType):
    """This package has the name of the function `ribozyme.models`, so it is that function too."""

    def __call__(self) -> tuple[registry.Model, ...]:
        """Every model that `load` knows by name: `name`, `family`, `hub`, `licence`, `about`, `cite` ..."""
        return registry.MODELS


sys.modules[__name__].__class__ = _Models
