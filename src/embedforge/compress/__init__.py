"""Smaller vectors and smaller weights of a finished embedding model, and what they cost in quality.

Start at run.py (`embedforge compress`: vectors, on one's own tasks) or weights.py (`embedforge compress
weights`: pruned or int8 weights). A decoder is made smaller before it is trained by `embedforge prune`.
"""
