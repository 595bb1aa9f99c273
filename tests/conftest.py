"""What all tests share."""

from hypothesis import settings

# Speed lives in benchmarks: on shared cores a deadline fails tests that are right.
settings.register_profile("shared_cores", deadline=None)
settings.load_profile("shared_cores")
