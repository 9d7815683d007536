"""The step of `train.py` by other trainers: sentence-transformers, FlagEmbedding, Tevatron, LLM2Vec.

Each gets the same queries and passages, tokenises, pads and embeds them by its own code with its own loss;
what is no part of it is shared: the decoder without its mask, bfloat16 autocast over float32 weights (where
that is native), clipping and AdamW. The mean is pooled, and by Tevatron the first token, which is all that
its only release on the index (0.1.0) knows; that one also pads every text to the limit.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from common import native_dtype

if TYPE_CHECKING:
    import torch

    from embedforge.data.mixture import Mixture

NEGATIVES = 7
TEMPERATURE = 0.05
Step = Callable[[], dict[str, float]]
Features = Sequence[Mapping[str, "torch.Tensor"]]


def read_rows(path: Path, queries: int) -> list[tuple[str, str, list[str]]]:
    """Return queries, positives and their first seven negatives."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if len(row["negatives"]) >= NEGATIVES]
    if len(rows) < queries:
        sys.exit(f"{path}: {len(rows)} rows with {NEGATIVES} negatives, and a step takes {queries}")
    return [(row["query"], row["positive"], row["negatives"][:NEGATIVES]) for row in rows]


def mixture_of(settings: dict[str, Any]) -> Mixture:
    """Return the steps that all competitors take, the same queries with the same negatives."""
    from embedforge.data.example import Example
    from embedforge.data.mixture import Mixture

    rows = read_rows(Path(settings["data"]), settings["queries"])
    return Mixture(
        {"x": [Example(query, (positive,), tuple(others), "") for query, positive, others in rows]},
        seed=0,
        batch_queries=settings["queries"],
        negatives=NEGATIVES,
    )


def stepping(
    settings: dict[str, Any],
    model: torch.nn.Module,
    features_of: Callable[[Sequence[str], Sequence[str]], Features],
    loss_of: Callable[[Features], torch.Tensor],
) -> Step:
    """Return a step of training; its value is what was computed.

    Args:
        settings: of `train.py`.
        model: whose parameters are trained.
        features_of: queries and passages, eight for each query, to what the model takes.
        loss_of: that to the loss.
    """
    import torch

    mixture, queries, device = mixture_of(settings), settings["queries"], settings["device"] or "cpu"
    autocast = device != "cpu" or native_dtype() == "bfloat16"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, fused=True)
    number = 0

    def step() -> dict[str, float]:
        nonlocal number
        texts = [text.text for text in mixture.step(number).texts]
        number += 1
        model.train()
        features = [
            {name: value.to(device) for name, value in part.items() if isinstance(value, torch.Tensor)}
            for part in features_of(texts[:queries], texts[queries:])
        ]
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=autocast):
            value = loss_of(features)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        real = sum(int(one["attention_mask"].sum()) for one in features)
        computed = sum(one["attention_mask"].numel() for one in features)
        return {"tokens": real, "computed": computed, "loss": value.item()}

    return step


def columns(queries: Sequence[str], passages: Sequence[str]) -> list[Sequence[str]]:
    """Return the queries, their positives, and each place of the negatives by itself."""
    return [queries, *(passages[place :: 1 + NEGATIVES] for place in range(1 + NEGATIVES))]


def decoder_of(settings: dict[str, Any]) -> tuple[Any, Any]:
    """Return the decoder in float32, its mask removed, and its tokenizer."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from embedforge.model.attention import make_bidirectional
    from embedforge.model.folder import find_folder

    folder = str(find_folder(settings["base"]))
    options = {"attn_implementation": "sdpa", "dtype": torch.float32}
    decoder = AutoModel.from_pretrained(folder, **options).to(settings["device"] or "cpu")
    make_bidirectional(decoder)
    return decoder, AutoTokenizer.from_pretrained(folder)


# --- the trainers -------------------------------------------------------------------------------------


def multiple_negatives(settings: dict[str, Any], attention: str) -> Step:
    """sentence-transformers' `MultipleNegativesRankingLoss`."""
    from sentence_transformers import losses

    model = _sentence_transformer(settings, attention)
    return _by_sentence_transformers(
        settings, model, losses.MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)
    )


def cached(settings: dict[str, Any], attention: str, size: str) -> Step:
    """Its cached form, so many texts at once."""
    from sentence_transformers import losses

    model = _sentence_transformer(settings, attention)
    loss = losses.CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=int(size))
    return _by_sentence_transformers(settings, model, loss)


def _sentence_transformer(settings: dict[str, Any], attention: str) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    from embedforge.model.attention import make_bidirectional
    from embedforge.model.folder import find_folder

    options = {"attn_implementation": attention, "dtype": torch.float32}
    body = Transformer(
        str(find_folder(settings["base"])), max_seq_length=settings["max_tokens"], model_kwargs=options
    )
    make_bidirectional(body.model)
    pooling = Pooling(body.get_word_embedding_dimension(), "mean")
    return SentenceTransformer(modules=[body, pooling, Normalize()], device=settings["device"] or "cpu")


def _by_sentence_transformers(settings: dict[str, Any], model: Any, loss: Any) -> Step:
    import torch

    labels = torch.zeros(settings["queries"])
    return stepping(
        settings,
        model,
        lambda queries, passages: [model.preprocess(column) for column in columns(queries, passages)],
        lambda features: loss(features, labels),
    )


def flag_embedding(settings: dict[str, Any], size: str) -> Step:
    """FlagEmbedding's decoder-only embedder, its passages in batches of `size`, or all at once (0)."""
    from FlagEmbedding.abc.finetune.embedder import AbsEmbedderCollator
    from FlagEmbedding.finetune.embedder.decoder_only.base.modeling import BiDecoderOnlyEmbedderModel

    decoder, tokenizer = decoder_of(settings)
    tokens, at_once = settings["max_tokens"], int(size) or -1
    model = BiDecoderOnlyEmbedderModel(
        decoder, tokenizer, temperature=TEMPERATURE, sentence_pooling_method="mean", normalize_embeddings=True
    )
    collate = AbsEmbedderCollator(
        tokenizer, query_max_len=tokens, passage_max_len=tokens, sub_batch_size=at_once
    )
    parts = -(-settings["queries"] // at_once) if at_once > 0 else 1

    def features_of(queries: Sequence[str], passages: Sequence[str]) -> Features:
        each = 1 + NEGATIVES
        rows = [(query, passages[n * each : (n + 1) * each], None) for n, query in enumerate(queries)]
        found = collate(rows)
        asked, answers = (
            one if isinstance(one, list) else [one] for one in map(found.get, ("queries", "passages"))
        )
        return [*asked, *answers]

    def loss_of(features: Features) -> torch.Tensor:
        asked, answers = list(features[:parts]), list(features[parts:])
        loss: torch.Tensor = model(queries=asked, passages=answers).loss
        return loss

    return stepping(settings, model, features_of, loss_of)


def tevatron(settings: dict[str, Any]) -> Step:
    """Tevatron 0.1.0: cosines it does not know, so its scores are products; first token, all texts padded."""
    from tevatron.data import QPCollator
    from tevatron.modeling import DenseModel

    decoder, tokenizer = decoder_of(settings)
    tokens = settings["max_tokens"]
    model = DenseModel(
        decoder,
        decoder,
        data_args=SimpleNamespace(train_n_passages=1 + NEGATIVES),
        train_args=SimpleNamespace(negatives_x_device=False, per_device_train_batch_size=settings["queries"]),
    )
    collate = QPCollator(tokenizer, max_q_len=tokens, max_p_len=tokens)

    def ids(texts: Sequence[str]) -> list[Any]:
        return [tokenizer(text, truncation=True, max_length=tokens) for text in texts]

    def features_of(queries: Sequence[str], passages: Sequence[str]) -> Features:
        features: Features = collate([(ids(queries), ids(passages))])
        return features

    def loss_of(features: Features) -> torch.Tensor:
        loss: torch.Tensor = model(query=features[0], passage=features[1]).loss
        return loss

    return stepping(settings, model, features_of, loss_of)


def llm2vec(settings: dict[str, Any]) -> Step:
    """LLM2Vec's supervised training, in an environment of its own: it needs transformers 4.44."""
    import torch
    from llm2vec import LLM2Vec
    from llm2vec.loss.HardNegativeNLLLoss import HardNegativeNLLLoss

    options = {"pooling_mode": "mean", "max_length": settings["max_tokens"], "attn_implementation": "sdpa"}
    with tempfile.TemporaryDirectory() as folder:
        _for_old_transformers(settings["base"], Path(folder))
        model = LLM2Vec.from_pretrained(folder, torch_dtype=torch.float32, **options)
    loss = HardNegativeNLLLoss(scale=1 / TEMPERATURE)

    def features_of(queries: Sequence[str], passages: Sequence[str]) -> Features:
        marked = [[f"{_MARK}{text}" for text in column] for column in columns(queries, passages)]
        return [model.tokenize(column) for column in marked]

    def loss_of(features: Features) -> torch.Tensor:
        asked, positive, *negative = map(model, features)
        value: torch.Tensor = loss(asked, positive, torch.cat(negative))
        return value

    return stepping(settings, model, features_of, loss_of)


def _for_old_transformers(base: str, folder: Path) -> None:
    """Copy a decoder, its tokenizer in the words that transformers and tokenizers had before 5.0 and 0.20."""
    from embedforge.model.folder import find_folder

    shutil.copytree(find_folder(base), folder, dirs_exist_ok=True)
    config, rules = folder / "tokenizer_config.json", folder / "tokenizer.json"
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    values = json.loads(config.read_text(encoding="utf-8")) | own
    config.write_text(json.dumps(values), encoding="utf-8")
    values = json.loads(rules.read_text(encoding="utf-8"))
    values["model"]["merges"] = [" ".join(pair) for pair in values["model"]["merges"]]
    rules.write_text(json.dumps(values), encoding="utf-8")


_MARK = "!@#$%^&*()"
"""What LLM2Vec puts between an instruction and its text."""
PEERS: dict[str, Callable[..., Step]] = {
    "mnrl": multiple_negatives,
    "cached": cached,
    "flag": flag_embedding,
    "tevatron": tevatron,
    "llm2vec": llm2vec,
}
"""By the first word of an entry's name; the other words are its settings."""
