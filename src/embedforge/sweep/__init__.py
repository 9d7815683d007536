"""A recipe with some of its settings varied: `run.sweep` trains and compares every variant, with seeds.

`grid` says which variants there are, without torch; `run` trains them, what they share once; `compare` is
the statistics over seeds and test units, `page` the table and the report.
"""
