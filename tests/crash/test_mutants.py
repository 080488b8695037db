"""The crashes and the scenarios find the faults that they are for: each mutant by name, and the whole code passes."""

import pytest

from .mutants import MUTANTS, apply, copy_package, search

pytestmark = [pytest.mark.faults, pytest.mark.slow]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A copy of the whole code."""
    home = tmp_path_factory.mktemp("mutants") / "whole"
    copy_package(home)
    return home


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_mutant_is_found(whole, tmp_path, mutant):
    """By the run that is meant to, and as what it is."""
    apply(mutant, whole, tmp_path / "mutant")
    found = search(mutant.run, tmp_path / "mutant")
    assert found.partition(":")[0] in mutant.kinds, found or f"{' '.join(mutant.run)} found nothing"


@pytest.mark.parametrize("run", sorted({mutant.run for mutant in MUTANTS}), ids=" ".join)
def test_whole_code_passes(whole, run):
    """The same run finds nothing without the fault."""
    assert search(run, whole) == ""


def test_names_tell_mutants_apart():
    """A mutant is found by name."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
