"""The crashes and the scenarios find the faults that they are for: each mutant by name, and the whole code passes."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from .mutants import MUTANTS, apply, copy_package, search

pytestmark = [pytest.mark.faults, pytest.mark.slow]


@pytest.fixture(scope="module")
def searches(tmp_path_factory):
    """What each run finds: by mutant, and in the whole code, all begun at once, two at a time."""
    home = tmp_path_factory.mktemp("mutants")
    copy_package(home / "whole")

    def mutated(number):
        apply(MUTANTS[number], home / "whole", home / str(number))
        return search(MUTANTS[number].run, home / str(number))

    with ThreadPoolExecutor(2) as pool:
        found = {one.name: pool.submit(mutated, number) for number, one in enumerate(MUTANTS)}
        found.update((run, pool.submit(search, run, home / "whole")) for run in {one.run for one in MUTANTS})
        yield found


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_mutant_is_found(searches, mutant):
    """By the run that is meant to, and as what it is."""
    found = searches[mutant.name].result()
    assert found.partition(":")[0] in mutant.kinds, found or f"{' '.join(mutant.run)} found nothing"


@pytest.mark.parametrize("run", sorted({mutant.run for mutant in MUTANTS}), ids=" ".join)
def test_whole_code_passes(searches, run):
    """The same run finds nothing without the fault."""
    assert searches[run].result() == ""


def test_names_tell_mutants_apart():
    """A mutant is found by name."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
