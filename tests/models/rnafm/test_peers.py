"""Full size, both ways: what we write is loaded by the published programs and gives their numbers.

Run where `rna-fm` and `multimolecule` are installed: pytest -m peer tests/models/rnafm
"""

import pytest
import torch
from torch.testing import assert_close

from ribozyme.models.rnafm import formats
from ribozyme.models.rnafm.config import Config
from ribozyme.models.rnafm.model import RNAFM
from ribozyme.models.rnafm.tokenizer import CODON, Tokenizer
from ribozyme.packing import Packed

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.filterwarnings("default")]

RNA_FM = Config()
MRNA_FM = Config(dim=1280, vocabulary=CODON, embed_norm=False)
SEQUENCES = {
    False: ("A", "GGGAAAUCCN-", "GCGGAUUUAGCUCAGUUGGGAGAGCGCC" * 36),
    True: ("AUG", "AUGGCUUAA" * 113),
}


def random_network(config: Config) -> RNAFM:
    generator = torch.Generator().manual_seed(1)
    module = RNAFM(config).eval()
    module.initialise(generator)
    for name, tensor in module.named_parameters():
        if tensor.dim() == 1:
            drawn = torch.randn(tensor.shape, generator=generator)
            tensor.data = 1 + 0.3 * drawn if "norm" in name and name.endswith("weight") else 0.2 * drawn
    for name, tensor in module.named_buffers():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.3, generator=generator)
    return module


def batch_of(tokenizer: Tokenizer, sequences: tuple[str, ...]) -> Packed:
    return Packed.of([[*tokenizer.prefix, *tokenizer.encode(s), *tokenizer.suffix] for s in sequences])


@pytest.mark.parametrize(("config", "theme"), [(RNA_FM, "rna"), (MRNA_FM, "rna-3mer")])
@torch.no_grad()
def test_the_authors_package_loads_our_file_and_agrees(config, theme, tmp_path):
    pretrained = pytest.importorskip("fm.pretrained")
    module, tokenizer = random_network(config), Tokenizer(config.vocabulary)
    formats.save(module, tokenizer, tmp_path, layout="fairseq")
    [path] = tmp_path.iterdir()
    content = torch.load(
        path, weights_only=False
    )  # its own loader no longer works: torch 2.6 changed the default
    peer, alphabet = pretrained.load_model_and_alphabet_core(path.stem, content, None, theme)
    sequences = SEQUENCES[config.codon]
    _, _, tokens = alphabet.get_batch_converter()([("", s) for s in sequences])
    out = peer.eval()(tokens, repr_layers=range(13))
    batch = batch_of(tokenizer, sequences)
    for layer in (0, 1, 6, 12):
        rows = batch.split(module.encode(batch, layer))
        for k, one in enumerate(rows):
            assert_close(one, out["representations"][layer][k, : len(one)], atol=1e-4, rtol=0)
    for k, one in enumerate(batch.split(module.logits(module.encode(batch)))):
        assert_close(one, out["logits"][k, : len(one)], atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", [RNA_FM, MRNA_FM])
@torch.no_grad()
def test_multimolecule_loads_our_folder_and_agrees(config, tmp_path):
    multimolecule = pytest.importorskip("multimolecule")
    module, tokenizer = random_network(config), Tokenizer(config.vocabulary)
    formats.save(module, tokenizer, tmp_path, layout="multimolecule")
    peer, info = multimolecule.RnaFmForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert set(info["unexpected_keys"]) <= {"ss_head.decoder.weight", "ss_head.decoder.bias"}
    theirs = multimolecule.RnaTokenizer.from_pretrained(tmp_path)
    letters = list(theirs.get_vocab())
    shared = [k for k, letter in enumerate(tokenizer.letters) if letter in letters]
    for sequence in SEQUENCES[config.codon]:
        batch = batch_of(tokenizer, (sequence,))
        rows = module.encode(batch)
        outputs = peer.eval().model(**theirs(sequence, return_tensors="pt"))
        assert_close(rows, outputs.last_hidden_state[0], atol=1e-4, rtol=0)
        logits = peer.lm_head(outputs).logits[0][:, [letters.index(tokenizer.letters[k]) for k in shared]]
        assert_close(module.logits(rows)[:, shared], logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_multimolecule_loads_our_secondary_structure_network_and_agrees(tmp_path):
    multimolecule = pytest.importorskip("multimolecule")
    config = Config(layers=2, structure_blocks=32)
    module, tokenizer = random_network(config), Tokenizer(config.vocabulary)
    formats.save(module, tokenizer, tmp_path, layout="multimolecule")
    kind = multimolecule.RnaFmForSecondaryStructurePrediction
    peer, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    theirs = multimolecule.RnaTokenizer.from_pretrained(tmp_path)
    for sequence in ("GGGAAACCC", "GCGGAUUUAGCUCAGUUGGGAGAGCGCC"):
        got = module.pair_logits(batch_of(tokenizer, (sequence,)).ids)
        peer_logits = peer.eval()(**theirs(sequence, return_tensors="pt"), output_attentions=True).logits
        assert_close(got, peer_logits[0, :, :, 0], atol=1e-4, rtol=0)
