"""From a user's files to the texts of each optimisation step; nothing here knows a model or imports torch.

`readers` turns files into Records, `kinds` Records into Examples (`convert.read_source` does both), `mixture`
lays Examples of several sources out into Steps, `describe` shows the result before anything is trained.
"""
