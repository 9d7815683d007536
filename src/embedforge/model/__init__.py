"""The model: a decoder turned into an encoder, a pooler, and the folder they are saved in.

- `attention`, `probe`: causal to bidirectional, and the proof, layer by layer, that it took effect.
- `pooling`, `latent`: token states to one vector.
- `decoder`: reading a decoder and its tokenizer safely.
- `encoder`: `EmbeddingModel`, `build`, `save`, `load`; begin here.
- `modules`, `layout`: the model as modules and folder of sentence-transformers.
- `adapter`: LoRA, and merging it with a check.
- `nvembed`: official NV-Embed checkpoints.
"""
