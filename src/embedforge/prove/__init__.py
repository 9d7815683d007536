"""A folder of plain documents, and nothing else, to an embedding model that fits them better: `run.adapt`.

`run` goes through the phases; read it first. `texts` keeps what was read of the folder, `settings` finds the
recipe for a base, `plan` what fits the time, `systems` the models to compare and what each makes of held-out
text, `figures` compares, `page` and `table` show.
"""
