"""Synthetic training data from a language model behind an OpenAI-compatible endpoint (E5-Mistral, section 3).

`run` is the verb: read it first. A plan (`plan`, `corpus`) says what is asked, as a function of the seed and
a number; `ask` asks it once, with the journal (`journal`) and the endpoint (`client`); `harvest` turns
answers into Examples by way of `parse`, `filters` and `duplicates`; `report` says what came of it.
"""
