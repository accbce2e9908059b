"""The table of models: whole, without twins, and with all that a fetch needs."""

import re
from importlib import import_module

import pytest

from ribozyme import registry
from ribozyme.registry import FAMILIES, MODELS, WEIGHT_SUFFIXES

by_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)


def test_names_are_unique_and_plain():
    names = [model.name for model in MODELS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)


@by_model
def test_every_line_has_a_family_a_licence_and_a_citation(model):
    assert model.family in FAMILIES
    assert model.licence
    assert model.cite.startswith(("arXiv:", "doi:"))
    assert model.about


@by_model
def test_a_published_model_has_a_hub_id_and_its_weights_first(model):
    if model.hub is None:
        assert model.name.endswith("-mini")
        assert model.files == ()
        return
    assert re.fullmatch(r"[\w.-]+/[\w.-]+(@[0-9a-f]{40})?", model.hub)
    assert model.files[0].name.endswith(WEIGHT_SUFFIXES)
    for file in model.files:
        assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)


@by_model
def test_a_pickle_is_pinned_or_of_a_repository_that_has_no_revision_known_to_us(model):
    if any(file.sha256 for file in model.files):
        assert model.hub is not None
        assert "@" in model.hub  # a digest without a revision would break with the next upload


def test_every_family_has_a_small_model_in_the_package():
    assert {model.family for model in MODELS if model.hub is None} == set(FAMILIES)


def test_every_family_has_a_folder():
    for family in FAMILIES:
        import_module(f"ribozyme.models.{family}")


def test_non_commercial_licences_are_known_as_such():
    restricted = {model.name for model in MODELS if model.non_commercial}
    assert restricted == {"helix-mrna", "mamba2-mrna"}


def test_the_published_digests_are_those_of_the_specification():
    known = {model.name: model.files[0] for model in MODELS if model.files}
    assert known["rnafm"].sha256.startswith("5b5d7d87b37c291e")
    assert known["rnafm"].size == 1_194_424_423
    assert known["mrnafm"].sha256.startswith("413324520d35f00b")
    assert known["rnafm-ss"].sha256.startswith("4ba2cde6b6ad75fb")
    assert known["scgpt"].sha256.startswith("6cb5d451ab5c4b33")
    assert known["scgpt-heart"].sha256.startswith("23b4c43f403a4069")


def test_the_registry_imports_no_model():
    assert not hasattr(registry, "torch")
