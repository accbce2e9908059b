"""`load`: whatever a name, folder, file or hub id holds, a model or a trained predictor."""

from pathlib import Path
from typing import Any

from ribozyme.engine.load import load as load_model

ESTIMATOR, FINE_TUNED = "estimator.json", "finetuned.json"


def load(name: str | Path, *, device: str = "auto", dtype: str = "auto") -> Any:
    """Load a model by name, from a local folder or file, or from a hub id `org/name[@revision]`.

    Parameters
    ----------
    device : `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1` ...
    dtype : the type of matrix products: `auto`, `float32` (exact) or `bfloat16`; a predictor is float32

    Returns
    -------
    a `SequenceModel` (Helix-mRNA, RNA-FM) or a `CellModel` (scGPT); of a folder that `save` of a predictor
    wrote, the `Classifier`, `Regressor`, `TokenClassifier`, `TokenRegressor` or `FineTuned` that it was.

    Raises
    ------
    HubError : the name is unknown, or its files cannot be had.
    CheckpointError : the files are damaged, incomplete, or of no model known here.
    DeviceError : a device that this machine lacks.
    """
    folder = Path(name)
    if (folder / ESTIMATOR).is_file():
        from ribozyme.train.estimators import Estimator

        return Estimator.load(folder, device=device)
    if (folder / FINE_TUNED).is_file():
        from ribozyme.train.finetune import FineTuned

        return FineTuned.load(folder, device=device)
    return load_model(name, device=device, dtype=dtype)
