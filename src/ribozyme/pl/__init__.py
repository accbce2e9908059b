"""Pictures: `embedding`, `similarity`, `heatmap`, `dots`, `training_curve`.

Each returns a matplotlib `Figure` made without pyplot: no global state, no backend, no `rcParams` is touched.
A notebook shows the figure, `save="picture.png"` writes it, `ax=` draws into axes of your own.
"""

from ribozyme.pl.curves import training_curve
from ribozyme.pl.dots import dots
from ribozyme.pl.matrix import heatmap, similarity
from ribozyme.pl.scatter import embedding, layout

__all__ = ["dots", "embedding", "heatmap", "layout", "similarity", "training_curve"]
