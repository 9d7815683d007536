"""The token that stands in for a hidden one: found in the vocabulary by name, or added to it."""

from __future__ import annotations

import re

import torch
from peft import PeftModel
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from embedforge.errors import EmbedforgeError

EOS = "eos"
_BRACKETED = re.compile(r"<\S+>|\[\S+\]")
_USUAL = ("_", "<mask>", "[MASK]", "<|mask|>", "<unused0>", "<|reserved_special_token_0|>", "<|extra_0|>")


def mask_token_id(tokenizer: PreTrainedTokenizerBase, name: str, rows: int) -> int:
    """Return the id of the mask token called `name`.

    Args:
        tokenizer: the decoder's.
        name: "eos", or an entry of the vocabulary as it stands there: "_", LLM2Vec's choice, is one token of
            Llama and Mistral. (Where it is none, the official code masks with the unknown token and does not
            say so.)
        rows: of the decoder's embedding matrix.

    Raises:
        EmbedforgeError: the name is no entry of the vocabulary, or its id has no row; the message names
            entries that would do.
    """
    ids = tokenizer.get_vocab()
    mask_id = tokenizer.eos_token_id if name == EOS else ids.get(name)
    if mask_id is not None and mask_id < rows:
        return int(mask_id)
    usual = (str(tokenizer.mask_token), *_USUAL)
    others = [f"'{other}'" for other in dict.fromkeys(usual) if other != name and ids.get(other, rows) < rows]
    way_out = f"Use {', '.join([*others, EOS])}, or set add_mask_token: true to add one as '<mask>'"
    if mask_id is not None:
        raise EmbedforgeError(
            f"mask token '{name}' has the id {mask_id}, and the decoder has only {rows} embeddings. {way_out}"
        )
    pieces = tokenizer.tokenize(name, add_special_tokens=False) if name else []
    raise EmbedforgeError(
        f"mask token '{name}' is not in the vocabulary of this tokenizer, for which it is {len(pieces)} "
        f"tokens ({' '.join(pieces[:8])}). {way_out}"
    )


@torch.no_grad()
def add_mask_token(
    decoder: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, name: str
) -> int:
    """Add a token to the tokenizer and, as its embedding, the mean of all others; return its id.

    Both are changed in place; every other row keeps its bits, so that texts without the token keep their
    vectors. A matrix that was padded beyond the tokenizer's entries keeps its size, and gives one of the
    spare rows. A token that is there already, with a row, stays as it is.

    Args:
        decoder: plain or wrapped by PEFT.
        tokenizer: the decoder's. The mask token is registered as such, and saved with it.
        name: in angle or square brackets, such as "<mask>". Texts that hold it get this token for it, so it
            has to be something that texts do not hold.

    Raises:
        EmbedforgeError: the name has no brackets.
    """
    plain = decoder.get_base_model() if isinstance(decoder, PeftModel) else decoder
    embeddings = plain.get_input_embeddings()
    rows, known = embeddings.weight.shape[0], len(tokenizer)
    if tokenizer.get_vocab().get(name, rows) < rows:
        return mask_token_id(tokenizer, name, rows)
    if not _BRACKETED.fullmatch(name):
        raise EmbedforgeError(
            f"'{name}' cannot be added as a mask token: texts may hold it, and would be tokenised in another "
            "way than before. Put it in brackets, as in '<mask>'"
        )
    mean = embeddings.weight[: min(rows, known)].float().mean(0)
    tokenizer.add_special_tokens({"mask_token": AddedToken(name, special=True, normalized=False)})
    added = int(tokenizer.convert_tokens_to_ids(name))
    if added >= rows:
        with torch.random.fork_rng(devices=[plain.device] if plain.device.type == "cuda" else []):
            plain.resize_token_embeddings(added + 1, mean_resizing=False)
        plain.get_input_embeddings().weight[rows:] = mean.to(embeddings.weight.dtype)
    else:
        embeddings.weight[added] = mean.to(embeddings.weight.dtype)
    return added
