"""What a base that is itself an embedding model brings along: its attention, and its trained pooler."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from torch import nn

from embedforge.errors import EmbedforgeError
from embedforge.model import layout
from embedforge.model.folder import find_folder
from embedforge.model.modules import Pool
from embedforge.model.pooling import STATELESS
from embedforge.text.contract import FILE_NAME as CONTRACT
from embedforge.text.contract import Contract

logger = logging.getLogger(__name__)


def own_attention(base: str) -> Literal["causal", "bidirectional"]:
    """Return what the decoder of a base was trained with: its contract's attention; causal without one.

    Args:
        base: `embedforge:base`, a folder or a hub id.
    """
    folder = find_folder(base)
    return Contract.load(folder).attention if (folder / CONTRACT).exists() else "causal"


def require_own_attention(folder: Path, contract: Contract) -> None:
    """Refuse to run the decoder of an embedding model under another attention than it was trained with.

    Raises:
        EmbedforgeError: that is asked for. Names both, and the way out.
    """
    if not (folder / CONTRACT).exists():
        return
    trained = Contract.load(folder).attention
    if trained != contract.attention:
        raise EmbedforgeError(
            f"{folder}: this embedding model was trained with {trained} attention, and contract.attention is "
            f"'{contract.attention}', under which its weights mean nothing: set contract.attention to "
            f"'{trained}', or start from the decoder that it was made of"
        )


def take_over_pooler(folder: Path, kind: str, pooler: nn.Module) -> None:
    """Put the weights of a base's pooler into a new one of the same shape, in place.

    A base that pools in another way leaves its pooler behind; a warning says so. One that is no embedding
    model of embedforge has none.

    Args:
        folder: of the base.
        kind: of the new pooler.
        pooler: the new one.
    """
    if not (folder / CONTRACT).exists():
        return
    before = Contract.load(folder).pooling
    if before in STATELESS:
        if before != kind:
            logger.warning(
                "%s was trained with pooling '%s', and is now pooled by '%s'", folder, before, kind
            )
        return
    earlier = Pool.load(str(folder), layout.POOL_FOLDER).pooler
    if before == kind and _shape(earlier) == _shape(pooler):
        pooler.load_state_dict(earlier.state_dict())
        return
    logger.warning(
        "%s was trained with pooling '%s'%s, and is now pooled by '%s': the weights of its pooler are left "
        "behind",
        folder,
        before,
        " of another shape" if before == kind else "",
        kind,
    )


def _shape(pooler: nn.Module) -> tuple[dict[str, tuple[int, ...]], list[int]]:
    """Return all that tells poolers of one kind apart: the sizes of their weights, and their heads."""
    heads = [getattr(module, "heads", None) for module in pooler.modules()]
    shapes = {name: tuple(weight.shape) for name, weight in pooler.state_dict().items()}
    return shapes, [count for count in heads if isinstance(count, int)]
