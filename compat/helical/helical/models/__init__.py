"""One folder a model, with the names and places of the original."""
