"""What all tests share: Hypothesis draws the same examples in every run, and never fails for a slow machine."""

from hypothesis import settings

settings.register_profile("deterministic", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("deterministic")
