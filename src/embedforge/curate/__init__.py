"""Curation: Examples in, fewer and better Examples out, with a report of what was dropped and why.

Each step is a function from Examples to an `Outcome`; `run.curate` puts them in their order. Never imports
what trains or mines.
"""
