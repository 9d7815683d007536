"""An embedding model is built of a decoder, saved, and loaded, whoever wrote it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer as StockSentenceTransformer
from sentence_transformers.base.modules import Normalize
from torch import Tensor, nn
from torch.nn import functional

from embedforge.errors import EmbedforgeError
from embedforge.files import replace_folder, whole_or_nothing, write_json
from embedforge.model import layout
from embedforge.model.attention import ensure_attention
from embedforge.model.auto_tokenizer import auto_tokenizer_options
from embedforge.model.card import write_card
from embedforge.model.decoder import load_decoder, quiet, require_state_width, state_width, torch_dtype
from embedforge.model.embedding_model import EmbeddingModel
from embedforge.model.folder import DEFAULT_MODEL, find_folder
from embedforge.model.foreign import load_foreign
from embedforge.model.int8 import multiply_bytes_where_near
from embedforge.model.modules import Pool, TextEncoder
from embedforge.model.nvembed import is_nvembed, load_nvembed
from embedforge.model.pooling import STATELESS, build_pooler
from embedforge.model.precision import INT8, memory_dtype, saved_dtype, stored_dtype
from embedforge.model.projection import Dense, dense_of, load_projection, save_projection
from embedforge.model.sentence_transformer import SentenceTransformer
from embedforge.model.shards import INT8_WEIGHTS
from embedforge.model.trained_base import require_own_attention, take_over_pooler
from embedforge.text.contract import FILE_NAME as CONTRACT
from embedforge.text.contract import Contract
from embedforge.text.goldens import check_goldens, golden_batch, make_goldens

__all__ = [
    "EmbeddingModel",
    "build",
    "embedding_model",
    "load",
    "load_decoder",
    "save",
    "to_sentence_transformer",
]

logger = logging.getLogger(__name__)


def build(
    *,
    base: str,
    contract: Contract,
    pooling: Mapping[str, Any] | None = None,
    sliding_window: Literal["off", "keep"] = "off",
    allow_causal_layers: bool = False,
    attention_implementation: str = "auto",
    trust_remote_code: bool = False,
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
) -> EmbeddingModel:
    """Make an embedding model of a decoder: attention switched and proven, a fresh pooler on top.

    Of a base that is an embedding model already, the pooler is taken over where its kind and shape stay; else
    a warning says that it is left behind. A linear map after it stays.

    >>> import embedforge
    >>> contract = embedforge.Contract(pooling="latent", max_tokens=64)
    >>> model = embedforge.build(base="embedforge:base", contract=contract, pooling={"latents": 8})
    >>> model.dim, model.pooler.latents.shape
    (384, torch.Size([8, 384]))

    Args:
        base: `embedforge:base`, a folder or a hub id.
        contract: how text becomes a vector; its `pooling` is the kind of the pooler.
        pooling: the settings of that kind (latents, heads, head_dim, feed_forward_multiple).
        sliding_window: see `make_bidirectional`.
        allow_causal_layers: accept layers that stay causal.
        attention_implementation: sdpa, eager, flash_attention_2 or auto.
        trust_remote_code: allow a repository to run its code.
        dtype: of the weights in memory; what the contract was given, else float32, when None. A contract that
            was given none gets the base's own for saving.
        seed: of the pooler's first weights.

    Raises:
        EmbedforgeError: see `load_decoder`, `ensure_attention`, `Renderer`; the decoder's context is shorter
            than `contract.max_tokens`; or the base is an embedding model trained with other attention.
    """
    options = dict(pooling or {})
    kind = options.pop("kind", contract.pooling)
    folder = find_folder(base)
    asked = contract.dtype if "dtype" in contract.model_fields_set else None
    if asked == INT8 and not (folder / INT8_WEIGHTS).exists():
        raise EmbedforgeError(
            "contract.dtype int8 is made of a finished model, by embedforge compress weights --int8; "
            "build one in float32, bfloat16 or float16"
        )
    asked = None if asked == INT8 else asked
    update = {"pooling": kind, "goldens": (), "dtype": asked or stored_dtype(folder)}
    contract = contract.model_copy(update=update)
    require_own_attention(folder, contract)
    decoder, tokenizer = load_decoder(
        base,
        dtype=dtype or asked or "float32",
        attention_implementation=attention_implementation,
        trust_remote_code=trust_remote_code,
    )
    context = getattr(decoder.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and context < contract.max_tokens:
        raise EmbedforgeError(
            f"contract.max_tokens is {contract.max_tokens}, and '{base}' reads at most {context} tokens; "
            f"set contract.max_tokens to {context} or less"
        )
    ensure_attention(
        decoder,
        contract.attention,
        sliding_window=sliding_window,
        allow_causal_layers=allow_causal_layers,
        padding_side=contract.padding_side,
    )
    require_state_width(decoder, base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pooler = build_pooler(kind, state_width(decoder), **options)
    take_over_pooler(folder, kind, pooler)
    projection = load_projection(folder) if (folder / CONTRACT).exists() else None
    return EmbeddingModel(decoder, pooler.to(decoder.dtype), tokenizer, contract, options, projection)


def save(
    model: EmbeddingModel,
    folder: Path | str,
    recipe: dict[str, Any] | None = None,
    *,
    dtype: str | None = None,
) -> None:
    """Write a model as a sentence-transformers folder with contract, goldens, recipe and card.

    The weights get the contract's dtype, which is the base's unless something else was asked for; 16-bit
    weights stay as they are. `dtype` asks for another.

    The goldens are computed in float32 from the weights as they were written, on the CPU, which takes memory
    for one float32 copy of the model beside the given one. An older folder is replaced only when everything
    is written. A model whose vectors sentence-transformers' own modules reproduce can be loaded without
    embedforge; where only a setting stands against that, a warning names it.

    >>> import embedforge
    >>> model = embedforge.build(base="embedforge:base", contract=embedforge.Contract(max_tokens=64))
    >>> embedforge.save(model, "untrained")
    >>> from sentence_transformers import SentenceTransformer
    >>> SentenceTransformer("untrained", device="cpu").encode(["how deep is the river?"]).shape
    (1, 384)

    Raises:
        EmbedforgeError: the folder holds something else; the decoder still wears an adapter; the disk is
            full; the written model does not give the vectors of the one in memory.
    """
    folder = Path(folder)
    _refuse_adapter(model.decoder)
    with whole_or_nothing(folder), replace_folder(folder, CONTRACT) as partial:
        obstacle = _write(model, partial, recipe, dtype)
    if obstacle is not None and model.contract.pooling in STATELESS:
        logger.warning("%s loads with embedforge only: in plain sentence-transformers %s", folder, obstacle)


def load(
    path_or_id: str | Path = DEFAULT_MODEL,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
) -> StockSentenceTransformer:
    """Load a model for `encode`, `encode_query` and `encode_document`; a contract is checked by its goldens.

    No file of the folder is executed. Without the check, a folder with one of sentence-transformers' own
    poolings also loads as `SentenceTransformer(folder)`, and one with latent or self-attention pooling as
    `SentenceTransformer(folder, trust_remote_code=True)` where embedforge is installed (model/modules.py).

    >>> import embedforge
    >>> model = embedforge.load("model", device="cpu")
    >>> queries = model.encode_query(["how do I undo a commit?"])
    >>> documents = model.encode_document(["git reset moves the branch", "git stash puts changes aside"])
    >>> model.similarity(queries, documents).shape
    torch.Size([1, 2])

    Args:
        path_or_id: a folder that embedforge saved, an official NV-Embed folder, or any model that
            sentence-transformers knows; the embedder in the package, `embedforge:forge-tiny`, by default.
        device: "cuda", "cpu", ...; CUDA where there is one when None.
        dtype: of the weights; as saved when None, but float32 on a CPU that is slow at 16 bits. There int8
            weights are multiplied as bytes, where the goldens allow; with a dtype they are not.

    Raises:
        EmbedforgeError: no such model; files missing or damaged; a bare decoder; token ids, masks or vectors
            of the goldens differ (the message holds expected and found).
    """
    from embedforge.model.lora_folder import refuse_adapter_folder  # peft, which takes a second

    folder = find_folder(str(path_or_id))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if (folder / CONTRACT).exists():
        model = _read(folder, dtype or memory_dtype(folder, Contract.load(folder).dtype, device))
        st = to_sentence_transformer(model, device)
        try:
            check_goldens(model.renderer, model.contract, _unit_vectors(model), _tolerance(model))
        except EmbedforgeError as error:
            raise EmbedforgeError(f"{folder / CONTRACT}: {error}") from None
        if dtype is None and model.contract.goldens:
            goldens = golden_batch(model.renderer, model.contract)
            multiply_bytes_where_near(model.decoder, partial(_unit_vectors(model), goldens), str(folder))
        st.origin = folder.resolve()
        return st
    if is_nvembed(folder):
        return to_sentence_transformer(load_nvembed(folder, dtype), device)
    refuse_adapter_folder(folder)
    return load_foreign(str(path_or_id), folder, device, None if dtype is None else torch_dtype(dtype))


def to_sentence_transformer(model: EmbeddingModel, device: str | None = None) -> SentenceTransformer:
    """Wrap a model, sharing its weights; it is moved to `device`, or stays where it is when None."""
    modules: list[nn.Module] = [*_halves(model)]
    if model.projection is not None:
        modules.append(dense_of(model.projection))
    if model.contract.normalize:
        modules.append(Normalize())
    return SentenceTransformer(
        modules=modules,
        device=device or str(model.device),
        prompts=layout.prompts(model.contract),
        similarity_fn_name="cosine",
    )


def embedding_model(st: StockSentenceTransformer) -> EmbeddingModel:
    """Return the model inside a loaded SentenceTransformer, sharing its weights.

    Raises:
        EmbedforgeError: it was not made of embedforge's modules.
    """
    modules = list(st)
    if len(modules) < 2 or not (isinstance(modules[0], TextEncoder) and isinstance(modules[1], Pool)):
        names = ", ".join(type(module).__name__ for module in modules)
        raise EmbedforgeError(
            f"this SentenceTransformer is made of {names}, not of embedforge's modules, and has no embedding "
            "contract. Load a folder that embedforge saved with embedforge.load; of other models, evaluate, "
            "mine and `embedforge encode` make use"
        )
    encoder, pool = modules[:2]
    dense = modules[2] if len(modules) > 2 and isinstance(modules[2], Dense) else None
    return EmbeddingModel(
        encoder.decoder,
        pool.pooler,
        encoder.renderer,
        encoder.contract,
        pool.options,
        None if dense is None else dense.linear,
    )


def _halves(model: EmbeddingModel) -> tuple[TextEncoder, Pool]:
    return (
        TextEncoder(model.decoder, model.renderer),
        Pool(model.pooler, model.contract.pooling, model.hidden_size, model.pooling),
    )


def _write(
    model: EmbeddingModel, folder: Path, recipe: dict[str, Any] | None, dtype: str | None
) -> str | None:
    """Write every file; return why plain sentence-transformers will not do, None when it will."""
    encoder, pool = _halves(model)
    pool_folder = folder / layout.POOL_FOLDER
    pool_folder.mkdir()
    dtype = dtype or saved_dtype(model.decoder, model.contract.dtype)
    with quiet():
        encoder.save(str(folder), dtype=dtype)
        pool.save(str(pool_folder), dtype=dtype)
        save_projection(model.projection, folder)

    contract = _contract_with_goldens(folder)
    check_goldens(model.renderer, contract, _unit_vectors(model), _loose_tolerance(model))
    contract.save(folder)

    tokenizer_options = auto_tokenizer_options(folder, contract)
    obstacle = layout.prefer_stock_modules(folder, contract, model.decoder, tokenizer_options)
    if recipe is not None:
        write_json(folder / "recipe.json", recipe)
    write_card(folder, contract, recipe, obstacle, tokenizer_options)
    return obstacle


def _contract_with_goldens(folder: Path) -> Contract:
    """Embed the goldens with what was written; the float32 copy is gone before anybody loads the next one."""
    written = _read(folder, torch.float32)
    goldens = make_goldens(written.renderer, _unit_vectors(written))
    return written.contract.model_copy(update={"goldens": goldens})


def _read(folder: Path, dtype: str | torch.dtype | None) -> EmbeddingModel:
    """Read what `_write` wrote, on the CPU."""
    encoder = TextEncoder.load(str(folder), model_kwargs={} if dtype is None else {"dtype": dtype})
    contract = encoder.contract
    if contract.pooling in STATELESS:
        pooler, options = build_pooler(contract.pooling, encoder.get_embedding_dimension()), {}
    else:
        pool = Pool.load(str(folder), layout.POOL_FOLDER)
        pooler, options = pool.pooler.to(encoder.decoder.dtype), pool.options
    projection = load_projection(folder)
    return EmbeddingModel(encoder.decoder, pooler, encoder.tokenizer, contract, options, projection)


def _unit_vectors(model: EmbeddingModel) -> Callable[[dict[str, Tensor]], Tensor]:
    """Return what makes unit vectors [texts, dim] of a token batch, whatever mode the model is in."""

    def embed(batch: dict[str, Tensor]) -> Tensor:
        training = model.training
        model.eval()
        vectors = model(**{name: tensor.to(model.device) for name, tensor in batch.items()})
        model.train(training)
        return functional.normalize(vectors, dim=-1)

    return embed


def _tolerance(model: EmbeddingModel) -> float:
    """Largest difference of a number of a unit vector that rounding explains, on any machine."""
    exact = model.decoder.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return 1e-4 if exact else _loose_tolerance(model)


def _loose_tolerance(model: EmbeddingModel) -> float:
    """Bound for half precision and TF32: a share of a number's usual size in a unit vector, 1 / sqrt(dim).

    A fixed bound that suits narrow models would pass anything in wide ones.
    """
    return 0.3 / model.dim**0.5


def _refuse_adapter(decoder: nn.Module) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer) for module in decoder.modules()):
        raise EmbedforgeError(
            "the decoder still has an adapter; merge it before saving (decoder = decoder.merge_and_unload())"
        )
