"""Models on tasks, measured by mteb, with intervals and paired tests: read `run.evaluate` first.

`tasks` makes mteb tasks of a folder of datasets, `encoders` is a model as mteb sees it, `units` what a score
is a mean of, and `summary` writes results.json and the report.
"""
