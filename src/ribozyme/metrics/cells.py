"""How well an embedding of cells keeps types apart and batches together.

The formulas are those of scib (Luecken et al., Nature Methods 2022), as scGPT reports them: AvgBIO is the
mean of NMI, ARI and the silhouette of the types, AvgBATCH that of the silhouette of the batches and graph
connectivity.
"""

import warnings
from typing import Any, Literal, Unpack

import numpy as np
import numpy.typing as npt

from ribozyme.errors import ConfigError, InputError, MissingExtraError
from ribozyme.metrics.score import Resampling, Score, UndefinedError, Values, bootstrap

NEIGHBOURS = 15
RESOLUTIONS = np.linspace(0.1, 2.0, 20)
Clustering = Literal["kmeans", "leiden"]


def integration(
    X: Any,
    labels: Any,
    batches: Any = None,
    *,
    before: Any = None,
    clustering: Clustering = "kmeans",
    seed: int = 0,
    scib: bool = False,
) -> dict[str, Score]:
    """All scores of an embedding.

    Parameters
    ----------
    X : (n, dim) embedding
    labels, batches : (n,) the type and the batch of each cell
    before : (n, genes) what was embedded, for principal component regression (`scib`)
    clustering : clusters for NMI and ARI: `kmeans`, as many as types; `leiden`, at the resolution with the
        best NMI, as published (needs igraph)
    scib : also kBET, iLISI and PCR, by scib-metrics

    Returns
    -------
    `nmi`, `ari`, `asw_label`, `avg_bio`, and with batches `asw_batch`, `graph_connectivity`, `avg_batch`.
    """
    matrix, types = _embedding(X), _codes(labels, "labels")
    groups = cluster(matrix, types, clustering, seed)
    scores = {"nmi": nmi(types, groups, seed=seed), "ari": ari(types, groups, seed=seed)}
    scores["asw_label"] = asw_label(matrix, types, seed=seed)
    scores["avg_bio"] = average(scores["nmi"], scores["ari"], scores["asw_label"])
    if batches is None:
        return scores
    sources = _codes(batches, "batches")
    scores["asw_batch"] = asw_batch(matrix, types, sources, seed=seed)
    scores["graph_connectivity"] = graph_connectivity(matrix, types)
    scores["avg_batch"] = average(scores["asw_batch"], scores["graph_connectivity"])
    if scib:
        scores.update(_by_scib(matrix, sources, before))
    return scores


def nmi(labels: Any, clusters: Any, **how: Unpack[Resampling]) -> Score:
    """Mutual information of types and clusters over the mean of their entropies."""
    return _of_clusters(_shared_information, labels, clusters, how)


def ari(labels: Any, clusters: Any, **how: Unpack[Resampling]) -> Score:
    """Adjusted Rand index of types and clusters."""
    return _of_clusters(_adjusted_rand, labels, clusters, how)


def asw_label(X: Any, labels: Any, **how: Unpack[Resampling]) -> Score:
    """Mean silhouette of the types, from 0 to 1 (0.5: types lie in each other)."""
    matrix, types = _embedding(X), _codes(labels, "labels")
    if not 1 < len(np.unique(types)) < len(types):
        return Score(float("nan"), n=len(types), reason="a silhouette needs two types, and fewer than cells")
    return bootstrap(lambda s: (s.mean() + 1) / 2, _silhouettes(matrix, types), **how)


def asw_batch(X: Any, labels: Any, batches: Any, **how: Unpack[Resampling]) -> Score:
    """1 - |silhouette of the batches| within each type, mean over the types (1: batches overlap)."""
    matrix, types, sources = _embedding(X), _codes(labels, "labels"), _codes(batches, "batches")
    mixed = np.full(len(types), np.nan)
    for one in np.unique(types):
        of = np.flatnonzero(types == one)
        if 1 < len(np.unique(sources[of])) < len(of):
            mixed[of] = 1 - np.abs(_silhouettes(matrix[of], sources[of]))
    kept = ~np.isnan(mixed)
    if not kept.any():
        return Score(float("nan"), n=len(types), reason="no type has cells of two batches")
    return bootstrap(_mean_of_groups, mixed[kept], types[kept], **how)


def graph_connectivity(X: Any, labels: Any, neighbours: int = NEIGHBOURS) -> Score:
    """Share of each type that is one piece of the graph of nearest neighbours, mean over the types."""
    from scipy.sparse.csgraph import connected_components
    from sklearn.neighbors import kneighbors_graph

    matrix, types = _embedding(X), _codes(labels, "labels")
    if len(matrix) < 2:
        return Score(float("nan"), n=len(matrix), reason="one cell has no neighbours")
    graph = kneighbors_graph(matrix, min(neighbours, len(matrix) - 1))
    shares = []
    for one in np.unique(types):
        of = np.flatnonzero(types == one)
        _, piece = connected_components(graph[of][:, of], directed=True, connection="weak")
        shares.append(np.bincount(piece).max() / len(of))
    return Score(float(np.mean(shares)), n=len(types), reason="not resampled")


def average(*scores: Score) -> Score:
    """The mean of scores, without an interval."""
    if undefined := [s for s in scores if np.isnan(s.value)]:
        return Score(float("nan"), n=scores[0].n, reason=undefined[0].reason)
    return Score(float(np.mean([s.value for s in scores])), n=scores[0].n, reason="not resampled")


def cluster(X: Any, labels: Any, clustering: Clustering = "kmeans", seed: int = 0) -> npt.NDArray[np.int64]:
    """(n,) clusters of cells to compare with types; see `integration`."""
    matrix, types = _embedding(X), _codes(labels, "labels")
    if clustering == "leiden":
        return _best_leiden(matrix, types, seed)
    if clustering != "kmeans":
        raise ConfigError(f"clustering {clustering!r} does not exist", hint="one of kmeans, leiden")
    from sklearn.cluster import KMeans

    return np.asarray(KMeans(len(np.unique(types)), n_init=10, random_state=seed).fit_predict(matrix))


def _best_leiden(matrix: Values, types: Values, seed: int) -> npt.NDArray[np.int64]:
    try:
        import igraph
    except ImportError as error:
        raise MissingExtraError("igraph", "scib", "Leiden clustering") from error
    import random

    from sklearn.neighbors import kneighbors_graph

    links = kneighbors_graph(matrix, min(NEIGHBOURS, len(matrix) - 1)).tocoo()
    edges = {(min(i, j), max(i, j)) for i, j in zip(links.row.tolist(), links.col.tolist())}
    graph = igraph.Graph(len(matrix), sorted(edges))
    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = [
            np.array(graph.community_leiden("modularity", resolution=r, n_iterations=2).membership)
            for r in RESOLUTIONS
        ]
    finally:
        igraph.set_random_number_generator(random)
    return max(found, key=lambda groups: nmi(types, groups, resamples=0).value)


def _by_scib(matrix: Values, sources: Values, before: Any) -> dict[str, Score]:
    """kBET and iLISI (1: batches are mixed as well as can be), and PCR where `before` is given."""
    try:
        import scib_metrics
        from scib_metrics.nearest_neighbors import NeighborsResults
    except ImportError as error:
        raise MissingExtraError("scib-metrics", "scib", "kBET, iLISI and PCR") from error
    from sklearn.neighbors import NearestNeighbors

    count = min(90, len(matrix))
    distances, indices = NearestNeighbors(n_neighbors=count).fit(matrix).kneighbors(matrix)
    near = NeighborsResults(indices=indices, distances=distances)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of jax, about devices
        found = {
            "kbet": scib_metrics.kbet(near, sources)[0],
            "ilisi": scib_metrics.ilisi_knn(near, sources),
        }
        if before is not None:
            dense = before.toarray() if hasattr(before, "toarray") else np.asarray(before)
            found["pcr"] = scib_metrics.pcr_comparison(dense, matrix, sources, categorical=True)
    return {name: Score(float(v), n=len(matrix), reason="not resampled") for name, v in found.items()}


def _embedding(X: Any) -> Values:
    matrix = np.asarray(X, dtype=np.float64)
    if matrix.ndim != 2:
        raise InputError(f"an embedding of shape {matrix.shape}", hint="(cells, dimensions)")
    if bad := int((~np.isfinite(matrix)).any(1).sum()):
        raise InputError(f"{bad:,} cells have no embedding (NaN)", hint="leave these cells out")
    return matrix


def _codes(given: Any, what: str) -> npt.NDArray[np.int64]:
    import pandas as pd

    codes = pd.factorize(np.asarray(given), sort=True)[0]
    if missing := int((codes < 0).sum()):
        raise InputError(f"{missing:,} {what} are missing", hint="leave these cells out")
    return np.asarray(codes, dtype=np.int64)


def _of_clusters(of: Any, labels: Any, clusters: Any, how: Any) -> Score:
    types, groups = _codes(labels, "labels"), _codes(clusters, "clusters")

    sizes = int(types.max()) + 1, int(groups.max()) + 1

    def statistic(t: Values, g: Values) -> float:
        table = np.bincount(t * sizes[1] + g, minlength=sizes[0] * sizes[1]).reshape(sizes)
        if np.count_nonzero(table.sum(1)) < 2:
            raise UndefinedError("the labels are of one class")
        return float(of(table))

    return bootstrap(statistic, types, groups, **how)


def _shared_information(table: Values) -> float:
    """2 I(types; clusters) / (H(types) + H(clusters)) from counts."""
    joint = table / table.sum()
    types, groups = joint.sum(1), joint.sum(0)
    entropies = _entropy(types) + _entropy(groups)
    return 2 * (entropies - _entropy(joint.ravel())) / entropies


def _entropy(shares: Values) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def _adjusted_rand(table: Values) -> float:
    """Pairs of cells that are together in both, above what chance gives (Hubert & Arabie 1985)."""
    both, types, groups, total = (
        float((x * (x - 1.0) / 2).sum()) for x in (table, table.sum(1), table.sum(0), table.sum())
    )
    chance = types * groups / total
    return (both - chance) / ((types + groups) / 2 - chance)


def _silhouettes(matrix: Values, groups: Values) -> Values:
    from sklearn.metrics import silhouette_samples

    return np.asarray(silhouette_samples(matrix, groups), dtype=np.float64)


def _mean_of_groups(values: Values, groups: Values) -> float:
    codes = np.unique(groups, return_inverse=True)[1]
    return float((np.bincount(codes, values) / np.bincount(codes)).mean())
