"""A model as StableHLO programs, to run without this package."""
