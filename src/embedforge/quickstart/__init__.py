"""A folder of the reader's own source code or text, and what a model learns from it without labels.

Read `corpus.read_corpus` first: files become units (a question and its answer), units become a split
that does not leak, and a split becomes training examples and an evaluation pool.
"""
