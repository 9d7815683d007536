"""A folder of text, and nothing else, to a proven embedding model: `run.prove`, which two verbs call.

Read `run` first: it goes through the phases. `recipes` finds the recipe for a base, `texts` keeps what was
read of the folder, `training_data` writes what is trained on, `plan` says what fits the time, `held_out` is
what all `systems` are compared on, `figures` compares, `findings`, `page` and `table` say what that means,
and `index` makes the folder searchable.
"""
