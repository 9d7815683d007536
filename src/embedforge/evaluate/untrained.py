"""A decoder that nothing has trained to embed, as a baseline by name: `DECODER@POOLING`.

What a model gained is the difference to where it started. `embedforge:base@mean` is the bundled decoder
with its own causal attention, no instruction, and the mean of its last states as the vector.
"""

from __future__ import annotations

import torch
from sentence_transformers import SentenceTransformer

from embedforge.errors import EmbedforgeError
from embedforge.model.decoder import read_config
from embedforge.model.encoder import build, to_sentence_transformer
from embedforge.model.folder import find_folder
from embedforge.model.pooling import STATELESS
from embedforge.model.trained_base import own_attention
from embedforge.text.contract import Contract

SEPARATOR = "@"
LONGEST = 512


def split_name(name: str) -> tuple[str, str] | None:
    """Return decoder and pooling of an untrained baseline's name; None for the name of a model.

    >>> split_name("embedforge:base@mean"), split_name("runs/a/model")
    (('embedforge:base', 'mean'), None)
    """
    decoder, separator, pooling = name.rpartition(SEPARATOR)
    return (decoder, pooling) if separator and pooling in STATELESS else None


def load_untrained(
    name: str, *, device: str | None = None, dtype: str | torch.dtype | None = None
) -> SentenceTransformer:
    """Build the baseline `DECODER@POOLING`; texts of up to 512 tokens, or what the decoder reads.

    Raises:
        EmbedforgeError: the name is no baseline's, or its decoder cannot be loaded.
    """
    parts = split_name(name)
    if parts is None:
        raise EmbedforgeError(
            f"{name}: an untrained baseline is DECODER@POOLING with one of {', '.join(sorted(STATELESS))}"
        )
    decoder, pooling = parts
    config = read_config(find_folder(decoder), trust_remote_code=False).get_text_config()
    contract = Contract(
        attention=own_attention(decoder),
        pooling=pooling,
        query_template="{text}",
        default_instruction="",
        max_tokens=min(LONGEST, getattr(config, "max_position_embeddings", LONGEST)),
    )
    model = build(base=decoder, contract=contract, dtype=dtype)
    return to_sentence_transformer(model.eval(), device)
