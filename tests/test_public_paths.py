"""What other programs import stays where it is."""

import importlib

import pytest

import cwf_milvus


@pytest.mark.parametrize(
    "path", ["errors", "rerank", "evaluation", "operators", "model", "demo", "cli", "images"]
)
def test_a_public_module_can_be_imported_by_its_path(path):
    importlib.import_module(f"cwf_milvus.{path}")


def test_photos_are_loaded_by_the_path_that_0_1_0_had():
    from cwf_milvus.images import load_image

    assert load_image is cwf_milvus.load_image


@pytest.mark.parametrize("name", [name for name in cwf_milvus.__all__ if name != "__version__"])
def test_a_public_name_is_what_its_module_has(name):
    assert getattr(cwf_milvus, name).__name__ == name
