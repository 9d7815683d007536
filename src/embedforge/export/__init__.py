"""A model in another program's form: ONNX, OpenVINO, GGUF, plain sentence-transformers.

Read run.py first: it loads the model, has a form written, and runs what was written with its own runtime
against the model itself (parity.py), before anything stands at its place. embed.py is the program that an
ONNX or OpenVINO folder is run with: here for the check, later as a copy in it, without embedforge.
"""
