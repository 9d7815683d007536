"""A recipe to a saved model: `run.train` goes through the stages, read it first.

A step runs through `trainer` (the loop, around `transformers.Trainer`), `work` (what a step is, whatever
the objective) and `contrastive` or `mntp` (its texts, its loss, its gradient). `mixtures` reads the data,
`stages` hands the model from stage to stage.
"""
