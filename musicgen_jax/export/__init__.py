"""A model as StableHLO programs that run without this package.

`program.export_model` writes the folder; `run.Exported`, which is copied into it, runs it.
"""
