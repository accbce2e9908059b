"""One published program, loaded once, that embeds the same inputs each time it is asked.

    python peer_embed.py PROGRAM SETTINGS

PROGRAM is a key of PROGRAMS, SETTINGS a JSON object: `weights`, `inputs` (a JSON list of sequences, or .npz
with `matrix` and `genes`), `threads`, `device`, and what the program takes. When all is loaded and warm, one
line of JSON with the versions comes back. Then each line of standard input, a path, is answered by one run:
the vectors are written there (.npy), and seconds, processor seconds and peak memory come back as JSON.

Runs in the environment of the peer and imports nothing of ours. `our_embed.py` answers in the same way.
"""

import json
import os
import resource
import sys
import time
import types
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

Settings = dict[str, Any]
Embed = Callable[[Any], Any]
PACKAGES = ("torch", "transformers", "multimolecule", "rna-fm", "scgpt", "helical", "ribozyme", "numpy")
MAMBA2 = {letter: 7 + k for k, letter in enumerate("ACGUN")}


# --------------------------------------------------------------------------------------------- the protocol


def serve(programs: dict[str, Callable[[Settings], Embed]]) -> None:
    """Load the program that the command line names, then run it as often as it is asked."""
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # some libraries print
    prepare(settings["threads"])
    inputs = read(Path(settings["inputs"]))
    embed = programs[name](settings)
    keep_to_cores(settings["threads"])
    embed(inputs[:2])
    say(answers, versions=versions())
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), processor_seconds()
        vectors = embed(inputs)
        wall, cpu = time.perf_counter() - wall, processor_seconds() - cpu
        np.save(line.strip(), np.asarray(vectors))
        say(answers, seconds=wall, cpu=cpu, peak=peak_memory())


def say(answers: Any, **content: Any) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


def prepare(threads: int | None) -> None:
    """No gradients, and this many threads; None leaves them as they are."""
    import torch

    torch.set_grad_enabled(False)
    if threads is not None:
        torch.set_num_threads(threads)


def keep_to_cores(count: int | None) -> None:
    """So many cores, for workers that a program starts too."""
    if count is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def read(path: Path) -> Any:
    """A list of sequences, or cells as AnnData with the gene names as `var_names`."""
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    with np.load(path) as file:
        cells = AnnData(csr_matrix(file["matrix"]))
        cells.var_names = [str(gene) for gene in file["genes"]]
    return cells


def peak_memory() -> int:
    """Bytes of this program alone; on Linux `ru_maxrss` counts the process that started it too."""
    status = Path("/proc/self/status")
    if status.exists():
        [line] = [one for one in status.read_text().splitlines() if one.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def processor_seconds() -> float:
    """Of this process and of the workers that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


# ------------------------------------------------------------------------------------------------- the peers


def multimolecule(settings: Settings) -> Embed:
    """RnaFmModel; the mean of the last rows over the letters of each sequence. batch, attention, dtype."""
    import torch
    from multimolecule import RnaFmModel, RnaTokenizer

    how = {"attn_implementation": settings["attention"]} if settings.get("attention") else {}
    model = RnaFmModel.from_pretrained(settings["weights"], **how).eval()
    model.to(settings["device"], getattr(torch, settings.get("dtype", "float32")))
    tokenizer = RnaTokenizer()

    def embed(sequences: list[str]) -> Any:
        vectors = []
        for some in batches(sequences, settings["batch"]):
            tokens = tokenizer(some, return_tensors="pt", padding=True).to(settings["device"])
            vectors += means(model(**tokens).last_hidden_state, some)
        return torch.stack(vectors).cpu()

    return embed


def rna_fm(settings: Settings) -> Embed:
    """The authors' package with its batch converter; means over letters. batch."""
    import torch
    from fm.pretrained import load_model_and_alphabet_core

    content = torch.load(settings["weights"], weights_only=False)
    name = Path(settings["weights"]).stem
    model, alphabet = load_model_and_alphabet_core(name, content, {"model": {}}, "rna")
    model.to(settings["device"]).eval()
    convert = alphabet.get_batch_converter()

    def embed(sequences: list[str]) -> Any:
        vectors = []
        for some in batches(sequences, settings["batch"]):
            _, _, tokens = convert([("", one) for one in some])
            rows = model(tokens.to(settings["device"]), repr_layers=[12])["representations"][12]
            vectors += means(rows, some)
        return torch.stack(vectors).cpu()

    return embed


def transformers_mamba2(settings: Settings) -> Embed:
    """Mamba2Model in its torch form; padding on the left, as its tokenizer does. batch."""
    import torch
    from transformers import Mamba2Model

    model = Mamba2Model.from_pretrained(settings["weights"]).eval().to(settings["device"])

    def embed(sequences: list[str]) -> Any:
        vectors = []
        for some in batches(sequences, settings["batch"]):
            longest = max(map(len, some))
            ids = torch.full((len(some), longest), model.config.pad_token_id)
            for row, one in zip(ids, some):
                row[longest - len(one) :] = torch.tensor([MAMBA2[letter] for letter in one])
            mask = torch.stack([torch.arange(longest) >= longest - len(one) for one in some]).long()
            given = {} if len(some) == 1 else {"attention_mask": mask.to(settings["device"])}
            rows = model(ids.to(settings["device"]), **given).last_hidden_state
            vectors += [row[longest - len(one) :].float().mean(0) for row, one in zip(rows, some)]
        return torch.stack(vectors).cpu()

    return embed


def helical_helix(settings: Settings) -> Embed:
    """HelixmRNA of 1.3.0 through its own two calls, one sequence at a time; means over letters."""
    from helical.models.helix_mrna.helix_mrna_config import HelixmRNAConfig
    from helical.models.helix_mrna.helix_mrna_tokenizer import CharTokenizer
    from helical.models.helix_mrna.model import HelixmRNA

    CharTokenizer(model_max_length=12288).save_pretrained(settings["weights"])
    config = HelixmRNAConfig(batch_size=1, device=settings["device"])
    config.config["model_name"] = settings["weights"]
    model = HelixmRNA(config)
    model.model.config.use_cache = False  # as published; True fails

    def embed(sequences: list[str]) -> Any:
        alone = (model.get_embeddings(model.process_data([one]))[0, : len(one)] for one in sequences)
        return np.stack([rows.mean(0) for rows in alone])

    return embed


def scgpt(settings: Settings) -> Embed:
    """`embed_data` without the loading of the model. window, batch; fast: the fused layers of torch."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))
    import make_scgpt

    TransformerModel, _, _ = make_scgpt.published()
    without_extras()
    from scgpt.tasks.cell_emb import get_batch_cell_embeddings
    from scgpt.utils import load_pretrained

    folder = Path(settings["weights"])
    args = json.loads((folder / "args.json").read_text())
    vocab = json.loads((folder / "vocab.json").read_text())
    sizes = args["embsize"], args["nheads"], args["d_hid"], args["nlayers"]
    model = TransformerModel(
        len(vocab), *sizes, vocab=vocab, pad_value=args["pad_value"], do_mvc=True, use_fast_transformer=False
    )
    weights = torch.load(folder / "best_model.pt", map_location="cpu", weights_only=True)
    load_pretrained(model, weights, verbose=False)
    model.to(settings["device"]).eval()
    torch.backends.mha.set_fastpath_enabled(settings.get("fast", True))
    middle_of_ties()

    def embed(cells: Any) -> Any:
        known = np.array([gene in vocab for gene in cells.var_names])
        cells = cells[:, known]
        return get_batch_cell_embeddings(
            cells,
            model=model,
            vocab=vocab,
            max_length=settings["window"],
            batch_size=settings["batch"],
            model_configs=args,
            gene_ids=np.array([vocab[gene] for gene in cells.var_names]),
        )

    return embed


def without_extras() -> None:
    """`scgpt` wants torchtext, which runs on no recent torch, for a class that embedding does not need."""
    import scgpt

    tasks, torchtext, vocab = map(types.ModuleType, ("scgpt.tasks", "torchtext", "torchtext.vocab"))
    tasks.__path__ = [f"{scgpt.__path__[0]}/tasks"]
    torchtext.vocab, vocab.Vocab = vocab, object
    sys.modules |= {"scgpt.tasks": tasks, "torchtext": torchtext, "torchtext.vocab": vocab}


def helical_scgpt(settings: Settings) -> Embed:
    """scGPT of helical 1.3.0 through its own two calls. window, batch."""
    from helical.models.scgpt.model import scGPT
    from helical.models.scgpt.scgpt_config import scGPTConfig
    from helical.models.scgpt.scgpt_utils import load_model

    config = scGPTConfig(batch_size=settings["batch"], emb_mode="cls", device=settings["device"]).config
    config |= {"model_path": Path(settings["weights"]) / "best_model.pt", "MAX_LENGTH": settings["window"]}
    model = object.__new__(scGPT)  # its __init__ would fetch weights
    super(scGPT, model).__init__()
    model.config, model.accelerator = config, None
    model.model, model.vocab = load_model(config)
    middle_of_ties()

    def embed(cells: Any) -> Any:
        return model.get_embeddings(model.process_data(cells.copy()))

    return embed


def middle_of_ties() -> None:
    """1/2 in the place of the random draws for tied values, so that results can be compared."""
    np.random.rand = lambda *shape: np.full(shape, 0.5)


def batches(items: list[str], size: int) -> list[list[str]]:
    return [items[k : k + size] for k in range(0, len(items), size)]


def means(rows: Any, sequences: list[str]) -> list[Any]:
    """Over the letters of each sequence, without its first special token and what follows."""
    return [row[1 : 1 + len(one)].float().mean(0) for row, one in zip(rows, sequences)]


PROGRAMS: dict[str, Callable[[Settings], Embed]] = {
    "multimolecule": multimolecule,
    "rna-fm": rna_fm,
    "transformers": transformers_mamba2,
    "helical-helix": helical_helix,
    "scgpt": scgpt,
    "helical-scgpt": helical_scgpt,
}

if __name__ == "__main__":
    serve(PROGRAMS)
