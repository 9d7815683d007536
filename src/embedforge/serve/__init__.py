"""A model behind HTTP: OpenAI's and TEI's protocols, a search page, and the contract in every answer.

Read `app.py` first: what is served, and by which function. `service.py` is a model that is shared by all
requests, `queue.py` puts their texts together into batches, `run.py` is `embedforge serve`.
"""
