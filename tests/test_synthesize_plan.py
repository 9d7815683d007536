"""What `synthesize` asks: groups, languages, prompts and passages as functions of seed and number."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedforge.documents.document import Chunk
from embedforge.errors import EmbedforgeError
from embedforge.synthesize.corpus import CorpusPlan, Neighbours
from embedforge.synthesize.groups import PAPER, Group, choose_languages, groups, languages, prompt
from embedforge.synthesize.plan import Item, PaperPlan, Request, Sampling, Wanted, take_turns

TASKS = json.dumps({"tasks": [f"Given thing {n}, retrieve stuff." for n in range(7)]})


def items(plan: PaperPlan) -> list[Item]:
    return [
        step
        for index in range(len(plan))
        if isinstance(step := plan.step(index, lambda request: TASKS), Item)
    ]


def paper_plan(examples: int, seed: int = 0) -> PaperPlan:
    return PaperPlan([groups()[name] for name in PAPER], choose_languages(("all",)), examples, seed)


def test_a_longer_plan_begins_with_the_shorter_one():
    assert items(paper_plan(400))[:150] == items(paper_plan(150))
    assert not {item.request.seed for item in items(paper_plan(100))} & {
        item.request.seed for item in items(paper_plan(100, seed=1))
    }


def test_groups_languages_and_values_are_drawn_as_the_data_says():
    plan = items(paper_plan(5000))
    counts = Counter(item.group.name for item in plan)
    for name in PAPER:
        assert counts[name] == pytest.approx(5000 * groups()[name].share / 507, abs=2)
    in_english = sum(item.query_language == "en" for item in plan if item.group.name != "bitext")
    assert in_english / (5000 - counts["bitext"]) == pytest.approx(0.43, abs=0.03)
    lengths = Counter(item.values["num_words"] for item in plan if item.group.name == "short-long")
    assert set(lengths) == {"50", "100", "200", "300", "400", "500"}
    assert min(lengths.values()) > 0.7 * max(lengths.values())
    assert all(item.query_language != item.document_language for item in plan if item.group.name == "bitext")


def test_the_papers_languages():
    assert len(languages()) == 93
    assert sum(language.weight == 1 for language in languages().values()) == 75
    assert len({language.code for language in languages().values()}) == 93


def test_tasks_serve_the_examples_of_their_block_only():
    group = groups()["short-short"]
    plan = PaperPlan([group], choose_languages(("English",)), 180, 0)
    asked: list[Request] = []

    def lookup(request: Request) -> str | None:
        asked.append(request)
        return TASKS if request.seed == first.request.seed else None

    first = plan.step(0, lambda request: None)
    assert isinstance(first, Wanted)
    assert first.request.step == "brainstorm"
    steps = [plan.step(index, lookup) for index in range(180)]
    assert [isinstance(step, Item) for step in steps] == [True] * 60 + [False] * 120
    assert len({request.seed for request in asked}) == 3
    instructions = Counter(step.instruction for step in steps[:60] if isinstance(step, Item))
    assert len(instructions) == 7
    assert max(instructions.values()) - min(instructions.values()) <= 1


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=6), st.integers(1, 200))
def test_turns_follow_the_shares(shares, count):
    turns = take_turns(shares, count)
    counts = Counter(which for which, _ in turns)
    for which, share in enumerate(shares):
        assert abs(counts[which] - count * share / sum(shares)) <= len(shares)
        assert [number for turn, number in turns if turn == which] == list(range(counts[which]))


def test_the_key_depends_on_prompt_seed_model_and_settings():
    request = Request("generate", "sts", "write", 1, {})
    keys = {
        request.key(Sampling("m")),
        request.key(Sampling("n")),
        request.key(Sampling("m", temperature=0.5)),
        Request("generate", "sts", "write", 2, {}).key(Sampling("m")),
        Request("generate", "sts", "write!", 1, {}).key(Sampling("m")),
    }
    assert len(keys) == 5
    assert Request("brainstorm", "bitext", "write", 1, {"type": "object"}).key(Sampling("m")) in keys


@pytest.mark.parametrize("group", groups().values(), ids=lambda group: group.name)
def test_prompts_name_the_keys_and_use_every_placeholder(group: Group):
    kinds = {"language": "LANG", "task": "TASK", "src_lang": "SRC", "tgt_lang": "TGT", "passage": "PASSAGE"}
    values = {
        **kinds,
        "headings": "",
        "query_type": "KIND",
        **{name: f"<{name}>" for name in group.placeholders},
    }
    text = prompt(f"generate-{group.name}", **values)
    assert all(f'"{key}"' in text for key in group.answer)
    assert all(f"<{name}>" in text for name in group.placeholders)
    if group.brainstorm:
        assert '{"tasks": [...]}' in prompt(f"brainstorm-{group.name}")
        assert "TASK" in text


def chunk(text: str, file: str, start: int = 0) -> Chunk:
    return Chunk(text, file, "line 1", (), "prose", start)


def test_hard_negatives_are_of_other_files_and_worse_by_words():
    filler = " ".join(f"detail{n}" for n in range(60))
    texts = [
        f"bicycle repair with a wrench and oil for the chain {filler}",
        f"bicycle repair with a wrench and oil for the chain {filler} and ten more words at the end",
        "bicycle chain history of the early makers",
        f"bicycle repair shops in town, wrench not included {filler[:400]} but other things one can buy",
        "cooking rice in a kettle over an open fire",
    ]
    passages = [chunk(text, f"{n}.md") for n, text in enumerate(texts)]
    neighbours = Neighbours([*passages, chunk("bicycle repair bicycle repair wrench oil", "0.md", 9)])
    negative = neighbours.negative("bicycle repair wrench oil", passages[0])
    assert negative is not None
    assert negative.file == "3.md"  # not the twin in 1.md, nor the other chunk of 0.md
    assert neighbours.negative("quantum physics", passages[0]) is None


def test_a_corpus_of_crumbs_is_refused():
    with pytest.raises(EmbedforgeError, match="none of its 2 passages"):
        CorpusPlan([chunk("too short", "a"), chunk("so is this", "b")], groups()["corpus"], (), 10, 0)
