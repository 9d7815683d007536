"""Which model this is, whatever its name: the same name may stand for another one tomorrow."""

from __future__ import annotations

import hashlib

import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from embedforge.errors import EmbedforgeError
from embedforge.files import hash_of
from embedforge.model.encoder import embedding_model


def weights_hash(model: nn.Module) -> str:
    """Return a hash of all weights: 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def identity_of(model: SentenceTransformer) -> str:
    """Return a fingerprint of a loaded model: 64 hexadecimal digits.

    That of its contract where this tells the weights, so that it is known without loading them; else one of
    weights, contract and prompts.
    """
    try:
        contract = embedding_model(model).contract
    except EmbedforgeError:  # sentence-transformers' own
        about = {"prompts": dict(model.prompts), "max_tokens": model.max_seq_length}
    else:
        if contract.knows_weights:
            return contract.fingerprint
        about = {"contract": contract.fingerprint}
    return 2 * hash_of({**about, "weights": weights_hash(model)})
