"""One table: the names a user types, the family that reads them, where the weights are, on what terms.

A new model is one line here and one folder in `models/`. Strings only: nothing is imported until asked for.
"""

from dataclasses import dataclass, field
from typing import Literal

Family = str
Kind = Literal["sequences", "cells"]

FAMILIES: dict[Family, Kind] = {"helix": "sequences", "rnafm": "sequences", "scgpt": "cells"}
"""Family name (a folder in `models/`) to what it reads."""


WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "best_model.pt")
"""The usual names of a weight file, the first that is there counts."""
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True, slots=True)
class File:
    """One published file: its name in the repository, and its sha256 and size where known."""

    name: str
    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """One line of the table. `hub` is `org/name@revision`, or None for weights that lie in the package."""

    name: str
    family: Family
    about: str
    licence: str
    cite: str
    hub: str | None = None
    files: tuple[File, ...] = field(default=())
    gated: bool = False

    @property
    def non_commercial(self) -> bool:
        """True where the licence of the weights forbids commercial use."""
        return "NC" in self.licence.upper().split("-")


HELIX = "arXiv:2502.13785"
RNAFM = "arXiv:2204.00300"
SCGPT = "doi:10.1038/s41592-024-02201-0"
SCGPT_FILES = (File("best_model.pt"), File("args.json"), File("vocab.json"))

MODELS: tuple[Model, ...] = (
    Model(
        "helix-mrna",
        "helix",
        "mRNA, hybrid of Mamba-2, attention and MLP, 5.2 M",
        "CC-BY-NC-SA-4.0",
        HELIX,
        "helical-ai/helix-mRNA",
        (File("model.safetensors"), File("config.json")),
        gated=True,
    ),
    Model(
        "mamba2-mrna",
        "helix",
        "mRNA, 16 Mamba-2 layers",
        "CC-BY-NC-SA-4.0",
        HELIX,
        "helical-ai/mamba2-mRNA",
        (File("model.safetensors"), File("config.json")),
    ),
    Model(
        "rnafm",
        "rnafm",
        "non-coding RNA, 12 layers, 99.5 M",
        "Apache-2.0",
        RNAFM,
        "cuhkaih/rnafm@91d4a46d28d8054a7b429955e8fc0c253ba0afd6",
        (
            File(
                "RNA-FM_pretrained.pth",
                "5b5d7d87b37c291ef42c140ef9edf7aea29f255fa2a4fd435f776c52e93d5e99",
                1_194_424_423,
            ),
        ),
    ),
    Model(
        "mrnafm",
        "rnafm",
        "coding RNA by codons, 12 layers, 239 M",
        "Apache-2.0",
        RNAFM,
        "cuhkaih/rnafm@91d4a46d28d8054a7b429955e8fc0c253ba0afd6",
        (File("mRNA-FM_pretrained.pth", "413324520d35f00bf5419a85033b18e11eb57bc1356a752660f8d75d3ef7624f"),),
    ),
    Model(
        "rnafm-ss",
        "rnafm",
        "RNA-FM with its secondary-structure network",
        "Apache-2.0",
        RNAFM,
        "cuhkaih/rnafm@91d4a46d28d8054a7b429955e8fc0c253ba0afd6",
        (
            File(
                "SS/RNA-FM-ResNet_bpRNA.pth",
                "4ba2cde6b6ad75fb1c742cd5a7f40d4d0d4bcd63a329ff98347776e7f84630e6",
            ),
        ),
    ),
    Model(
        "scgpt",
        "scgpt",
        "cells, whole human, 33 M cells, 51 M",
        "MIT",
        SCGPT,
        "perturblab/scgpt-human@571a0445d68fa48381f863ff75dd4f6d0eae3dfc",
        (
            File(
                "best_model.pt",
                "6cb5d451ab5c4b33eb673adbe4fddc61d2389df1b89b7651a9fe2e557572b922",
                205_385_258,
            ),
            File("args.json", None, 1_300),
            File("vocab.json", "acca93d114ca62c3f0f50debbd23e8c87f0714f4737764454f6b2b13f2e8580f", 1_317_639),
        ),
    ),
    Model(
        "scgpt-blood",
        "scgpt",
        "cells, blood and bone marrow, 10.3 M cells",
        "MIT",
        SCGPT,
        "perturblab/scgpt-blood",
        SCGPT_FILES,
    ),
    Model(
        "scgpt-brain",
        "scgpt",
        "cells, brain, 13.2 M cells",
        "MIT",
        SCGPT,
        "perturblab/scgpt-brain",
        SCGPT_FILES,
    ),
    Model(
        "scgpt-heart",
        "scgpt",
        "cells, heart, 1.8 M cells",
        "MIT",
        SCGPT,
        "perturblab/scgpt-heart@f494d85028a4adb01487d9b53f2a6ee9da7765da",
        (
            File("best_model.pt", "23b4c43f403a4069e3acaa2a11c9a7be971b14e3c363739a6c4d24651c3feee7"),
            File("args.json"),
            File("vocab.json"),
        ),
    ),
    Model(
        "scgpt-kidney",
        "scgpt",
        "cells, kidney, 814 k cells",
        "MIT",
        SCGPT,
        "perturblab/scgpt-kidney",
        SCGPT_FILES,
    ),
    Model(
        "scgpt-lung", "scgpt", "cells, lung, 2.1 M cells", "MIT", SCGPT, "perturblab/scgpt-lung", SCGPT_FILES
    ),
    Model(
        "scgpt-pan-cancer",
        "scgpt",
        "cells, pan-cancer, 5.7 M cells",
        "MIT",
        SCGPT,
        "perturblab/scgpt-pan-cancer",
        SCGPT_FILES,
    ),
    Model(
        "scgpt-cp",
        "scgpt",
        "cells, whole human, continual pretraining",
        "MIT",
        SCGPT,
        "perturblab/scgpt-continual-pretrained",
        SCGPT_FILES,
    ),
    Model("helix-mrna-mini", "helix", "mRNA, small, in the package", "Apache-2.0", HELIX),
    Model("rnafm-mini", "rnafm", "non-coding RNA, small, in the package", "Apache-2.0", RNAFM),
    Model("scgpt-mini", "scgpt", "cells, small, in the package", "Apache-2.0", SCGPT),
)
