"""Small copies of the catalogue's datasets, in the column layout they were published in.

Written from published cards and loaders, not from the catalogue, whose columns they are to check. Each is a
folder that `datasets` reads like a repository of the hub: Parquet files, or gzipped JSON lines, and a README
that names configurations and splits.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
import yaml

Rows = list[dict[str, Any]]


class Published(NamedTuple):
    """One dataset: rows by (configuration, split), and what the first Example must be."""

    hub: str
    rows: dict[tuple[str, str], Rows]
    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    files: dict[str, Rows] = {}
    other: Any = None
    """Another dataset of the hub that this one needs."""


def triplets(hub: str, *configs: str, anchor: str = "anchor") -> Published:
    def rows(config: str) -> Rows:
        return [
            {anchor: f"query {i}{config}", "positive": f"pos {i}", "negative": f"neg {i}"} for i in (1, 2)
        ]

    return Published(
        hub,
        {(config, "train"): rows(config) for config in configs},
        f"query 1{configs[0]}",
        ("pos 1",),
        ("neg 1",),
    )


def pairs(hub: str, query: str, positive: str, config: str = "default", **more: Any) -> Published:
    rows = [{**more, query: f"query {i}", positive: f"passage {i}"} for i in (1, 2)]
    return Published(hub, {(config, "train"): rows}, "query 1", ("passage 1",))


def beir(hub: str) -> Published:
    corpus = [{"_id": f"d{i}", "title": "Nile" if i == 1 else "", "text": f"river {i}"} for i in range(1, 5)]
    queries = [{"_id": f"q{i}", "text": f"query {i}"} for i in (1, 2, 3)]
    judged = [("q1", "d1", 1.0), ("q1", "d3", 2.0), ("q2", "d2", 1.0), ("q2", "d4", 0.0)]
    qrels = [{"query-id": q, "corpus-id": d, "score": score} for q, d, score in judged]
    rows = {("corpus", "corpus"): corpus, ("queries", "queries"): queries, ("default", "train"): qrels}
    rows["default", "test"] = [{"query-id": "q3", "corpus-id": "d4", "score": 1.0}]
    return Published(hub, rows, "query 1", ("Nile river 1", "river 3"))


def labelled(hub: str, first: str, config: str = "default", **columns: tuple[Any, Any]) -> Published:
    """Rows of two classes; `columns` are label columns with both values, `first` is the first one as text."""
    rows = [
        {"id": str(i), "text": f"text {i}", **{name: values[i % 2] for name, values in columns.items()}}
        for i in range(4)
    ]
    return Published(hub, {(config, "train"): rows}, "text 0", (first,))


def papers(hub: str, column: str, labels: tuple[str, str], query: str, label: str) -> Published:
    rows = [
        {"id": str(i), "title": f"title {i}", "abstract": f"abstract {i}", column: labels[i % 2]}
        for i in range(4)
    ]
    return Published(hub, {("default", "train"): rows}, query, (label,))


def scored(hub: str, config: str = "default", **more: Any) -> Published:
    rows = [
        {**more, "sentence1": "a man plays", "sentence2": "someone plays", "score": 4.0},
        {**more, "sentence1": "a man plays", "sentence2": "a dog runs", "score": 1.0},
    ]
    return Published(hub, {(config, "train"): rows}, "a man plays", ("someone plays",))


def reddit(query: str) -> Published:
    rows = [
        {"title": f"title {i}", "body": f"body {i}", "subreddit": ("rivers", "bread")[i % 2]}
        for i in range(4)
    ]
    return Published(
        "sentence-transformers/reddit-title-body", {("default", "train"): rows}, query, ("rivers",)
    )


def hover() -> Published:
    facts = [{"key": "Nile", "value": 0}, {"key": "Nile", "value": 2}, {"key": "nowhere", "value": 0}]
    rows = [
        {
            "id": 0,
            "uid": "u",
            "claim": "claim 1",
            "supporting_facts": facts,
            "label": 1,
            "num_hops": 2,
            "hpqa_id": "h",
        }
    ]
    return Published(
        "hover-nlp/hover",
        {("default", "train"): rows},
        "claim 1",
        ("Nile river 1",),
        other=beir("mteb/hotpotqa"),
    )


def sets() -> Published:
    row = {"sentences": ["title 1", "title 2", "title 3"], "labels": ["unix", "cooking", "unix"]}
    hub = "mteb/stackexchange-clustering"
    return Published(
        hub, {("default", "validation"): [row], ("default", "test"): [row]}, "title 1", ("unix",)
    )


def sites(names: tuple[str, ...]) -> Published:
    files = {name: [{"texts": [f"title of {name}", f"body of {name}"], "tags": ["a"]}] for name in names}
    site = names[0].removesuffix(".jsonl.gz")
    query = f"title of {names[0]} body of {names[0]}"
    return Published(
        "flax-sentence-embeddings/stackexchange_title_body_jsonl", {}, query, (site,), files=files
    )


def by_hand() -> Published:
    return Published("", {}, "query 1", ("passage 1",))


_ST, _TEXTS = "sentence-transformers/", ("label", "label_text")
_LANGUAGES = ("ar", "bn", "en", "es", "fa", "fi", "fr", "hi", "id", "ja", "ko", "ru", "sw", "te", "th", "zh")
_MRTYDI = ("ar", "bn", "en", "fi", "id", "ja", "ko", "ru", "sw", "te", "th")


def texts(hub: str, first: str, second: str, config: str = "default") -> Published:
    """Numbers and texts for labels, as in the datasets that mteb took from SetFit."""
    return labelled(hub, first.replace("_", " "), config, label=(0, 1), label_text=(first, second))


def published(sites_of_catalog: tuple[str, ...]) -> dict[str, Published]:
    return {
        "msmarco": triplets(_ST + "msmarco-bm25", "triplet", anchor="query"),
        "paq": pairs(_ST + "paq", "query", "answer"),
        "nli": triplets(_ST + "all-nli", "triplet"),
        **{name: beir(f"mteb/{name}") for name in ("hotpotqa", "fever", "fiqa", "nfcorpus", "scifact")},
        "nq": pairs(_ST + "natural-questions", "query", "answer"),
        "squad": pairs("rajpurkar/squad", "question", "context", id="1", title="Nile"),
        "stackexchange": pairs(_ST + "stackexchange-duplicates", "body1", "body2", "body-body-pair"),
        "arguana": pairs("BeIR/arguana-generated-queries", "query", "text", _id="1", title=""),
        "hover": hover(),
        "miracl": triplets(_ST + "miracl", "en-triplet"),
        "mrtydi": triplets(_ST + "mr-tydi", "en-triplet"),
        "miracl-multilingual": triplets(_ST + "miracl", *(f"{name}-triplet" for name in _LANGUAGES)),
        "mrtydi-multilingual": triplets(_ST + "mr-tydi", *(f"{name}-triplet" for name in _MRTYDI)),
        "eli5": pairs(_ST + "eli5", "question", "answer", "pair"),
        "triviaqa": triplets(_ST + "trivia-qa-triplet", "triplet"),
        "quora": triplets(_ST + "quora-duplicates", "triplet"),
        "dureader": pairs(_ST + "dureader", "question", "answer", "pair"),
        "t2ranking": triplets(_ST + "t2ranking", "triplet"),
        "sts12": scored("mteb/sts12-sts"),
        "sts22": scored("mteb/sts22-crosslingual-sts", "en", id="1", lang="en"),
        "stsbenchmark": scored("mteb/stsbenchmark-sts", split="train", genre="g"),
        "amazoncounterfactualclassification": texts(
            "mteb/amazon_counterfactual", "not-counterfactual", "counterfactual", "en"
        ),
        "amazonpolarityclassification": texts("mteb/amazon_polarity", "negative", "positive"),
        "amazonreviewsclassification": labelled(
            "mteb/AmazonReviewsClassification", "1 star", "en", label=(0, 4)
        ),
        "banking77classification": texts("mteb/banking77", "card_arrival", "wrong_balance"),
        "emotionclassification": texts("mteb/emotion", "joy", "fear"),
        "imdbclassification": labelled("mteb/imdb", "negative", label=(0, 1), label_text=("neg", "pos")),
        "massiveintentclassification": texts("mteb/amazon_massive_intent", "alarm_set", "play_music", "en"),
        "massivescenarioclassification": texts("mteb/amazon_massive_scenario", "alarm", "music", "en"),
        "mtopdomainclassification": labelled(
            "mteb/MTOPDomainClassification", "alarm", "en", label=("alarm", "music")
        ),
        "mtopintentclassification": labelled(
            "mteb/MTOPIntentClassification", "GET ALARM", "en", label=("GET_ALARM", "PLAY_MUSIC")
        ),
        "toxicconversationsclassification": labelled(
            "mteb/toxic_conversations_50k", "not toxic", label=(0, 1)
        ),
        "tweetsentimentextractionclassification": texts(
            "mteb/tweet_sentiment_extraction", "negative", "positive"
        ),
        "arxivclusteringp2p": papers(
            "mteb/raw_arxiv", "categories", ("cs.LG stat.ML", "math.CO"), "title 0 abstract 0", "cs.LG"
        ),
        "arxivclusterings2s": papers(
            "mteb/raw_arxiv", "categories", ("cs.LG stat.ML", "math.CO"), "title 0", "cs.LG"
        ),
        **{
            f"{name}clustering{kind}": papers(
                f"mteb/raw_{name}", "category", ("ecology", "genetics"), query, "ecology"
            )
            for name in ("biorxiv", "medrxiv")
            for kind, query in (("p2p", "title 0 abstract 0"), ("s2s", "title 0"))
        },
        "redditclustering": reddit("title 0"),
        "redditclusteringp2p": reddit("title 0 body 0"),
        "stackexchangeclustering": sets(),
        "stackexchangeclusteringp2p": sites(sites_of_catalog),
        "twentynewsgroupsclustering": texts("SetFit/20_newsgroups", "rec.autos", "sci.space"),
        **{name: by_hand() for name in ("bioasq", "synthetic", "synthetic-e5", "msmarco-documents")},
    }


def write_published(folder: Path, dataset: Published) -> None:
    """Write a dataset below `folder`, under its hub id."""
    place = folder / dataset.hub
    place.mkdir(parents=True, exist_ok=True)
    configs: dict[str, list[dict[str, str]]] = {}
    for (config, split), rows in dataset.rows.items():
        file = f"{config}/{split}.parquet"
        (place / config).mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), place / file)
        configs.setdefault(config, []).append({"split": split, "path": file})
    if configs:
        listed = [{"config_name": name, "data_files": files} for name, files in configs.items()]
        (place / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': listed})}---\n")
    for name, rows in dataset.files.items():
        (place / name).write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    if dataset.other is not None:
        write_published(folder, dataset.other)
