"""The examples of the model cards, word for word, with small checkpoints in place of the published ones."""

import re
from pathlib import Path

import numpy as np
import pytest

# ruff: noqa: E501
pytest.importorskip("helical", reason="the drop-in is not installed: pip install ./compat/helical")

HELIX = """
from helical.models.helix_mrna import HelixmRNA, HelixmRNAConfig
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"

input_sequences = ["EACU"*20, "EAUG"*20, "EAUG"*20, "EACU"*20, "EAUU"*20]

helix_mrna_config = HelixmRNAConfig(batch_size=5, device=device, max_length=100)
helix_mrna = HelixmRNA(configurer=helix_mrna_config)

# prepare data for input to the model
processed_input_data = helix_mrna.process_data(input_sequences)

# generate the embeddings for the processed data
embeddings = helix_mrna.get_embeddings(processed_input_data)
"""

HELIX_FINE_TUNING = """
from helical.models.helix_mrna import HelixmRNAFineTuningModel, HelixmRNAConfig
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"

input_sequences = ["EACU"*20, "EAUG"*20, "EUGC"*20, "ECUG"*20, "EUUG"*20]
labels = [0, 2, 2, 0, 1]

helix_mrna_config = HelixmRNAConfig(batch_size=5, device=device, max_length=100)
helix_mrna_fine_tune = HelixmRNAFineTuningModel(helix_mrna_config=helix_mrna_config, output_size=3)

train_dataset = helix_mrna_fine_tune.process_data(input_sequences)

helix_mrna_fine_tune.train(train_dataset=train_dataset, train_labels=labels)

outputs = helix_mrna_fine_tune.get_outputs(train_dataset)

print("Helix-mRNA fine-tuned model output shape", outputs.shape)
"""

HELIX_OLD = """
from helical import HelixmRNA, HelixmRNAConfig

HelixmRNA = HelixmRNA(HelixmRNAConfig(batch_size=5, device='cuda'))

dataset = HelixmRNA.process_data(rna_sequence_strings_list)

embeddings = HelixmRNA.get_embeddings(dataset)
print("Helix-mRNA embeddings shape: ", embeddings.shape)
"""

HELIX_OLD_FINE_TUNING = """
from helical import HelixmRNAFineTuningModel, HelixmRNAConfig

helixr_config = HelixmRNAConfig(batch_size=5, device='cuda')
helixr_fine_tune = HelixmRNAFineTuningModel(helixr_config=helixr_config, fine_tuning_head='regression', output_size=1)

train_dataset = helixr_fine_tune.process_data(rna_sequence_strings_list)

helixr_fine_tune.train(train_dataset=train_dataset, train_labels=output_labels)

outputs = helixr_fine_tune.get_outputs(eval_dataset)

print("Helix-mRNA fine-tuned model output shape", outputs.shape)
"""

MAMBA2 = """
from helical.models.mamba2_mrna import Mamba2mRNA, Mamba2mRNAConfig
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"

input_sequences = ["ACUG"*20, "AUGC"*20, "AUGC"*20, "ACUG"*20, "AUUG"*20]

mamba2_mrna_config = Mamba2mRNAConfig(batch_size=5, device=device)
mamba2_mrna = Mamba2mRNA(configurer=mamba2_mrna_config)

processed_input_data = mamba2_mrna.process_data(input_sequences)

embeddings = mamba2_mrna.get_embeddings(processed_input_data)

print("Mamba2-mRNA embeddings shape: ", embeddings.shape)
"""

MAMBA2_FINE_TUNING = """
from helical.models.mamba2_mrna import Mamba2mRNAFineTuningModel, Mamba2mRNAConfig
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"

input_sequences = ["ACUG"*20, "AUGC"*20, "AUGC"*20, "ACUG"*20, "AUUG"*20]
labels = [0, 2, 2, 0, 1]

mamba2_mrna_config = Mamba2mRNAConfig(batch_size=5, device=device, max_length=100)
mamba2_mrna_fine_tune = Mamba2mRNAFineTuningModel(mamba2_mrna_config=mamba2_mrna_config, output_size=3)

train_dataset = mamba2_mrna_fine_tune.process_data(input_sequences)

mamba2_mrna_fine_tune.train(train_dataset=train_dataset, train_labels=labels)

outputs = mamba2_mrna_fine_tune.get_outputs(train_dataset)

print("Mamba2-mRNA fine-tuned model output shape", outputs.shape)
"""

SCGPT = """
from helical.models.scgpt import scGPT, scGPTConfig
import anndata as ad

scgpt_config = scGPTConfig(batch_size=10)
scgpt = scGPT(configurer = scgpt_config)
adata = ad.read_h5ad("dataset.h5ad")
data = scgpt.process_data(adata)
embeddings = scgpt.get_embeddings(data)

print(embeddings.shape)
"""

SCGPT_FROM_ITS_MODULE = """
from helical.models.scgpt.model import scGPT, scGPTConfig
import anndata as ad
import torch
device = "cuda" if torch.cuda.is_available() else "cpu"
scgpt_config = scGPTConfig(batch_size=50, device=device)
scgpt = scGPT(configurer=scgpt_config)
adata = ad.read_h5ad("dataset.h5ad")
data = scgpt.process_data(adata)
embeddings = scgpt.get_embeddings(data)
"""

SCGPT_FINE_TUNING = """
from helical.models.scgpt import scGPTFineTuningModel, scGPTConfig
import anndata as ad

# Load the desired dataset
adata = ad.read_h5ad("dataset.h5ad")

# Get the desired label class
cell_types = list(adata.obs.cell_type)

# Get unique labels
label_set = set(cell_types)

# Create the fine-tuning model with the relevant configs
scgpt_config=scGPTConfig(batch_size=10)
scgpt_fine_tune = scGPTFineTuningModel(scGPT_config=scgpt_config, fine_tuning_head="classification", output_size=len(label_set))

# Process the data for training
data = scgpt_fine_tune.process_data(adata)

# Create a dictionary mapping the classes to unique integers for training
class_id_dict = dict(zip(label_set, [i for i in range(len(label_set))]))

for i in range(len(cell_types)):
    cell_types[i] = class_id_dict[cell_types[i]]

# Fine-tune
scgpt_fine_tune.train(train_input_data=data, train_labels=cell_types)
outputs = scgpt_fine_tune.get_outputs(data)
"""

RNAS = ["EACUEGGG", "EAC", "acguN", "EAUGEGCC", "ACGT"]


@pytest.fixture
def run(checkpoints, monkeypatch, tmp_path, adata):
    """Run an example where the names of the published models stand for small checkpoints."""
    import ribozyme.hub
    from ribozyme.hub import Resolved

    published = ribozyme.hub.resolve

    def resolve(name):
        return Resolved(Path(checkpoints[name])) if name in checkpoints else published(name)

    monkeypatch.setattr("ribozyme.engine.load.resolve", resolve)
    monkeypatch.chdir(tmp_path)
    adata.write_h5ad("dataset.h5ad")

    def run(example, **given):
        names = dict(given)
        exec(compile(example, "example", "exec"), names)
        return names

    return run


def test_helix_mrna(run):
    embeddings = run(HELIX)["embeddings"]
    assert embeddings.shape == (5, 81, 16)  # 80 letters and the end token
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings[1], embeddings[2], atol=1e-6)
    assert np.abs(embeddings[0] - embeddings[1]).max() > 1e-3


def test_helix_mrna_fine_tuning(run, capsys):
    assert run(HELIX_FINE_TUNING)["outputs"].shape == (5, 3)
    assert "output shape (5, 3)" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*no CUDA here")
def test_helix_mrna_as_first_published(run):
    assert run(HELIX_OLD, rna_sequence_strings_list=RNAS)["embeddings"].shape == (5, 9, 16)


@pytest.mark.filterwarnings("ignore:.*no CUDA here")
@pytest.mark.parametrize("labels", [[1.0, 2.0, 3.0, 2.5, 0.1], np.arange(5.0)[:, None]])
def test_helix_mrna_fine_tuning_as_first_published(run, labels):
    example = HELIX_OLD_FINE_TUNING.replace("eval_dataset)", "train_dataset)")
    assert run(example, rna_sequence_strings_list=RNAS, output_labels=labels)["outputs"].shape == (5, 1)


def test_mamba2_mrna(run):
    assert run(MAMBA2)["embeddings"].shape == (5, 16)


def test_mamba2_mrna_fine_tuning(run):
    assert run(MAMBA2_FINE_TUNING)["outputs"].shape == (5, 3)


@pytest.mark.filterwarnings("ignore::ribozyme.errors.InputWarning")
@pytest.mark.parametrize("example", [SCGPT, SCGPT_FROM_ITS_MODULE])
def test_scgpt(run, example):
    embeddings = run(example)["embeddings"]
    assert embeddings.shape == (12, 32)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


@pytest.mark.filterwarnings("ignore::ribozyme.errors.InputWarning")
def test_scgpt_fine_tuning(run):
    assert run(SCGPT_FINE_TUNING)["outputs"].shape == (12, 2)


@pytest.mark.parametrize("card", [HELIX, HELIX_FINE_TUNING, MAMBA2, MAMBA2_FINE_TUNING])
def test_every_name_is_also_at_the_top(card):
    import helical

    for name in re.search("import (.*)\n", card).group(1).split(", "):
        assert getattr(helical, name)
