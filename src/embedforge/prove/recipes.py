"""Which recipe a run has, and the folder's files as its sources: pairs or texts, as its stages ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from embedforge.errors import EmbedforgeError
from embedforge.model.decoder import read_config, read_tokenizer
from embedforge.model.folder import BUNDLED, find_folder
from embedforge.model.mask_token import EOS, mask_token_id
from embedforge.prove.texts import SENTENCES_FILE, TEXTS_FILE
from embedforge.prove.training_data import PARTS_FILE, QUESTIONS_FILE, RETRIEVAL_FILE
from embedforge.recipe import Recipe, Source, Stage, load_recipe
from embedforge.recipe.objectives import Objective, PairObjective
from embedforge.runtime import native_precision, pick_device

TINY, LARGE = "llm2vec-tiny", "llm2vec-unsup"
WITHOUT_HEAD = "llm2vec-simcse"
"""For bases that cannot do MNTP."""
MASKS = ("_", "<mask>", "[MASK]", "<|mask|>")


def choose_recipe(
    base: str | None,
    name: str | None,
    overrides: Sequence[str],
    *,
    seed: int,
    device: str | None,
    console: Console,
) -> Recipe:
    """Return the recipe of a run, and say what was chosen.

    Without a name it is `llm2vec-tiny` for the bundled decoder. For any other it is `llm2vec-unsup` without
    the chat template of its own model, with an adapter on every linear layer, texts within the base's context
    and a mask token of its vocabulary. A named recipe is taken as it stands.

    Args:
        base: the decoder; the recipe's own when None, and the bundled one when there is no name either.
        name: a shipped recipe or a YAML file.
        overrides: "key=value" as of `--set`, which have the last word.
        seed: of the run.
        device: decides whether bfloat16 is worth it.
        console: told what was chosen and why.

    Raises:
        EmbedforgeError: no such recipe or base.
    """
    if name is None and base not in (None, BUNDLED):
        assert base is not None
        name, settings = LARGE, _settings_for(base, console)
    else:
        name, settings = name or TINY, [f"model.base={base}"] if base else []
    settings = [f"seed={seed}", *settings, *overrides]
    recipe = load_recipe(name, settings)
    precision = native_precision(recipe.training.precision, pick_device(device))
    if precision != recipe.training.precision:
        console.print("no fast bfloat16 on this machine: training in float32, fewer steps in the same time")
        recipe = load_recipe(name, [*settings, f"training.precision={precision}"])
    return recipe


def _settings_for(base: str, console: Console) -> list[str]:
    """Return what `llm2vec-unsup` needs changed for a base that it was not written for."""
    folder = find_folder(base)
    config = read_config(folder, trust_remote_code=False).get_text_config()
    tokenizer = read_tokenizer(folder)
    mask = pick_mask_token(tokenizer, config.vocab_size)
    name = "EOS, for the vocabulary has none" if mask == EOS else repr(mask)
    console.print(
        f"{base}: recipe {LARGE} without its chat template, LoRA on all linear layers, mask token {name}. "
        "Other settings: --recipe, --set",
        markup=False,
        highlight=False,
    )
    limits = []
    longest = load_recipe(LARGE).contract.max_tokens
    context = getattr(config, "max_position_embeddings", None) or longest
    if context < longest:
        limits = [f"contract.max_tokens={context}", f"stages.mntp.objective.chunk_tokens={context}"]
        limits.append(f"stages.simcse.document_max_tokens={min(128, context)}")
    return [
        f"model.base={base}",
        "model.adapter.targets=all-linear",
        'contract.chat_template="{text}"',
        f'stages.mntp.objective.mask_token="{mask}"',
        *limits,
    ]


def pick_mask_token(tokenizer: PreTrainedTokenizerBase, rows: int) -> str:
    """Return "_", LLM2Vec's mask, where it is one token; else an entry made for it; else "eos".

    Args:
        tokenizer: the base's.
        rows: of its embedding matrix.
    """
    for name in (MASKS[0], tokenizer.mask_token, *MASKS[1:]):
        if name is None:
            continue
        try:
            mask_token_id(tokenizer, str(name), rows)
        except EmbedforgeError:
            continue
        return str(name)
    return EOS


def trains_on_pairs(recipe: Recipe) -> bool:
    """Tell whether any stage needs questions and answers; the others need text alone, or take both."""
    return any(stage.objective.learns_from == "pairs" for stage in recipe.stages)


def with_sources(recipe: Recipe, *, parts: bool, taught: Mapping[str, int] | None = None) -> Recipe:
    """Replace a recipe's sources by the files that the run has written into OUT/data.

    Objectives of pairs get these, under the contract's instruction; those without in-batch negatives the
    texts of one part as well, where the folder has several `parts`. Those of texts get passages where they
    cut chunks of them (MNTP), else sentences (SimCSE). Those of either, distillation alone, get as many of
    each file of text as the teacher has the time for, `taught`.
    """
    instruction = recipe.contract.default_instruction

    def sources(objective: Objective) -> tuple[Source, ...]:
        if objective.learns_from == "texts":
            file = TEXTS_FILE if objective.unit == "chunks" else SENTENCES_FILE
            return (Source(path=file, kind="texts"),)
        if objective.learns_from == "either":
            known = {file: count for file, count in (taught or {}).items() if count}
            kinds = {file: "examples" if file == QUESTIONS_FILE else "texts" for file in known}
            return tuple(Source(path=file, kind=kinds[file], cap=count) for file, count in known.items())
        pairs = Source(path=RETRIEVAL_FILE, instruction=instruction)
        if not parts or not isinstance(objective, PairObjective) or objective.in_batch != "none":
            return (pairs,)
        return (pairs, Source(path=PARTS_FILE, symmetric=True, in_batch_negatives=False))

    def fed(stage: Stage) -> Stage:
        if stage.objective.unit == "models":
            return stage
        mix = stage.mix.model_copy(update={"sources": sources(stage.objective)})
        return stage.model_copy(update={"mix": mix})

    return recipe.model_copy(update={"stages": tuple(map(fed, recipe.stages))})
