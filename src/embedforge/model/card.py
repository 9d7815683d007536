"""README.md of a saved folder: what the model is, how to load it, how each library is told the instruction.

Its head is the metadata that the hub reads: base, licence, language, and the scores of the last evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from embedforge.errors import EmbedforgeError
from embedforge.files import write_json, write_text
from embedforge.model.folder import BUNDLED, HUB_ID, find_folder
from embedforge.model.named_bases import NAMED
from embedforge.model.pooling import pooler_class
from embedforge.text.contract import Contract

CARD = "README.md"
EVALUATION = "evaluation.json"
_SCORES = ("<!-- evaluation -->", "<!-- end of evaluation -->")


def write_card(
    folder: Path,
    contract: Contract,
    recipe: Mapping[str, Any] | None,
    obstacle: str | None,
    tokenizer_options: Mapping[str, str] | None,
) -> None:
    """Write README.md.

    Args:
        folder: of the model, written so far.
        contract: of the model.
        recipe: that made it, if one did; its base gives licence and language.
        obstacle: why sentence-transformers' own modules will not do; None when they do.
        tokenizer_options: what AutoTokenizer has to be told; {} for nothing.
    """
    base = None if recipe is None else str(recipe["model"]["base"])
    head = _head(base)
    text = _CARD.format(
        facts="\n".join(_facts(contract, recipe, base, head)), usage=_usage(contract, obstacle)
    )
    if obstacle is None:
        text += (
            "\nsentence-transformers alone suffices to load it; `embedforge.load` also checks the goldens.\n"
        )
        if contract.dtype != "float32":
            text += _SLOW_HALVES.format(dtype=contract.dtype)
    else:
        text += f"\nLoading needs embedforge: in plain sentence-transformers {obstacle}.\n{_WITH_FLAG}"
        if module := pooler_class(contract.pooling).defined_in():
            text += f"Its pooling is not embedforge's own: `import {module}`, where it is defined, first.\n"
    if tokenizer_options != {}:
        text += _PLAIN_TOKENIZER
    write_text(folder / CARD, _with_head(head, text))


def note_evaluation(folder: Path, tasks: Mapping[str, Mapping[str, Any]], split: str) -> None:
    """Keep the scores of an evaluation in a model's folder, and put them into its card.

    Args:
        folder: of the model; `evaluation.json` is written into it.
        tasks: by name, each with `type`, `metric` and `score`.
        split: of the tasks in folders.
    """
    kept = {name: {key: result[key] for key in ("type", "metric", "score")} for name, result in tasks.items()}
    write_json(folder / EVALUATION, {"split": split, "tasks": kept})
    file = folder / CARD
    if not file.exists():
        return
    card = ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    head = cast(ModelCardData, card.data)
    head.model_name = folder.resolve().name
    head.eval_results = [
        EvalResult(
            task_type="sentence-similarity",
            task_name=result["type"],
            dataset_type="custom",
            dataset_name=name,
            metric_type=result["metric"],
            metric_value=round(result["score"], 5),
        )
        for name, result in kept.items()
    ]
    rows = [f"| {name} | {r['type']} | {r['metric']} | {r['score']:.4f} |" for name, r in kept.items()]
    table = "\n".join(["| task | type | metric | score |", "|---|---|---|---|", *rows])
    block = f"{_SCORES[0]}\n## Last evaluation\n\n{table}\n{_SCORES[1]}\n"
    before, found, rest = card.text.partition(_SCORES[0])
    after = rest.partition(_SCORES[1])[2].lstrip("\n") if found else ""
    write_text(file, _with_head(head, f"{before.rstrip()}\n\n{block}{after}"))


def _with_head(head: ModelCardData, text: str) -> str:
    return f"---\n{head.to_yaml()}\n---\n\n{text.strip()}\n"


def _head(base: str | None) -> ModelCardData:
    """Return what the hub reads: what the base's own card says of licence and language, and its name."""
    said = _said_by(base)
    is_hub_id = base is not None and base not in NAMED and HUB_ID.fullmatch(base) and not Path(base).exists()
    name = base if is_hub_id and "/" in str(base) else said.get("base_model")
    return ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "embedforge"],
        base_model=name,
        license=said.get("license") or "unknown",
        license_name=said.get("license_name"),
        license_link=said.get("license_link"),
        language=said.get("language"),
    )


def _said_by(base: str | None) -> dict[str, Any]:
    """Return the metadata of a base's own card; nothing where it has none, or cannot be found any more."""
    if base is None:
        return {}
    try:
        file = find_folder(base) / CARD
        said = ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, EmbedforgeError):
        said = {}
    if base in NAMED:
        return {"license": NAMED[base].licence.lower(), **said}
    return said


def _facts(
    contract: Contract, recipe: Mapping[str, Any] | None, base: str | None, head: ModelCardData
) -> list[str]:
    facts = [
        f"- licence: {head.license if head.license != 'unknown' else 'unknown, the base does not say'}",
        f"- language: {_listed(head.language) or 'not said by the base'}",
        f"- pooling: {contract.pooling}; attention: {contract.attention}",
        f"- at most {contract.max_tokens} tokens a text; longer texts are cut",
        f"- before a query stands {contract.query_prefix()!r}",
        f"- before a document stands {contract.document_prefix()!r}",
        f"- vectors are {'of unit length' if contract.normalize else 'not normalised'}",
        f"- the weights are {contract.dtype}",
    ]
    facts += [
        f"- after a {kind} stands {suffix!r}"
        for kind, suffix in (("query", contract.query_suffix()), ("document", contract.document_suffix()))
        if suffix
    ]
    if recipe is not None and base is not None:
        # Of a local base the last part only: whole paths are nobody else's business.
        source = Path(base).name if base != BUNDLED and Path(base).is_absolute() else base
        facts.insert(0, f"- made by the recipe '{recipe['name']}' (recipe.json) from '{source}'")
    return facts


def _listed(value: str | Sequence[str] | None) -> str:
    return value if isinstance(value, str) else ", ".join(map(str, value or ()))


def _usage(contract: Contract, obstacle: str | None) -> str:
    """Return how the model is loaded, and how other libraries are told what stands before a query."""
    first = (
        "from sentence_transformers import SentenceTransformer" if obstacle is None else "import embedforge"
    )
    load = "SentenceTransformer" if obstacle is None else "embedforge.load"
    own = _OWN.format(first=first, load=load)
    prefix = contract.query_prefix()
    if not prefix:
        return own
    flag = obstacle is not None
    return own + _OTHERS.format(
        # A JSON string is one of Python too.
        prefix=json.dumps(prefix, ensure_ascii=False),
        langchain=', model_kwargs={"trust_remote_code": True}' if flag else "",
        flag=", trust_remote_code=True" if flag else "",
    )


_CARD = """# A text-embedding model made with embedforge

{facts}

{usage}
`contract.json` holds how a text becomes a vector, with goldens that prove it.
"""

_OWN = """```python
{first}

model = {load}("path/to/this/folder")
queries = model.encode_query(["which river is the longest?"])
documents = model.encode_document(["The Nile is 6,650 km long."])
print(model.similarity(queries, documents))
```
"""

_OTHERS = """
## In other libraries

Queries were trained with an instruction before them. Other libraries leave it out unless they are told, and
the vectors are then others than those that were trained. One argument each:

```python
instruction = {prefix}

# sentence-transformers
model.encode(["a query"], prompt_name="query")
# LangChain
HuggingFaceEmbeddings(model_name=folder, query_encode_kwargs={{"prompt_name": "query"}}{langchain})
# LlamaIndex
HuggingFaceEmbedding(model_name=folder, query_instruction=instruction{flag})
# Haystack, for queries; documents have no prefix
SentenceTransformersTextEmbedder(model=folder, encode_kwargs={{"prompt_name": "query"}}{flag})
# Chroma: its embedding function knows no queries, so embed them here
collection.query(query_embeddings=model.encode_query(["a query"]))
# LanceDB: likewise
table.search(model.encode_query("a query"))
```
"""

_SLOW_HALVES = """
The weights are {dtype}: a CPU without instructions for it is many times slower than with
`SentenceTransformer(folder, model_kwargs={{"dtype": "float32"}})`. `embedforge.load` sees to that by itself.
"""

_WITH_FLAG = """Where embedforge is installed this gives the same model:
`SentenceTransformer("path/to/this/folder", trust_remote_code=True)`. The flag lets sentence-transformers
import the classes of another installed package.
"""

_PLAIN_TOKENIZER = """
Plain transformers reads this tokenizer with `PreTrainedTokenizerFast.from_pretrained`. `AutoTokenizer` takes
a class for this model type that builds the tokenizer anew, and the token ids are not those of training.
"""
