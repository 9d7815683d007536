"""The documentation says what the code does: recipes parse, commands exist, data lines are read."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main
import yaml
from pydantic import BaseModel

from embedforge import recipe
from embedforge.cli import app
from embedforge.data.convert import read_source
from embedforge.recipe import Source, load_recipe, objectives, parse_recipe, shipped_recipes, stage, terms
from embedforge.recipe import model as recipe_model
from embedforge.recipe.base import Kinds
from embedforge.recipe.prune import Prune, Vocabulary
from embedforge.text.contract import Contract

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
VERBS = typer.main.get_command(app).commands
PARTIAL = "# part of a recipe"
MINIMAL = {"name": "r", "stages": [{"name": "s", "steps": 1, "mix": {"sources": [{"path": "a.jsonl"}]}}]}


class Block(NamedTuple):
    """A fenced block; `language` is the first word after the fence, `about` the others."""

    page: str
    line: int
    language: str
    about: tuple[str, ...]
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def fenced(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        language, *about = found[1].split() or [""]
        yield Block(page.name, text[: found.start()].count("\n") + 1, language, tuple(about), found[2])


BLOCKS = [block for page in PAGES for block in fenced(page)]


def blocks(*languages: str) -> list[Any]:
    return [pytest.param(block, id=block.place) for block in BLOCKS if block.language in languages]


# --- recipes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("yaml"))
def test_a_recipe_parses(block: Block, tmp_path: Path) -> None:
    """A part, marked so in its first line, is completed by a minimal recipe."""
    if block.text.startswith(PARTIAL):
        parse_recipe({**MINIMAL, **yaml.safe_load(block.text)}, block.place)
        return
    for path in shipped_recipes().values():
        shutil.copy(path, tmp_path)  # what a recipe extends lies beside it
    (tmp_path / "block.yaml").write_text(block.text, encoding="utf-8")
    load_recipe(str(tmp_path / "block.yaml"))


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A section and those below it, in every kind that has more keys than its kind."""
    if issubclass(model, Kinds):
        yield from (kind for kind in model.kinds().values() if len(kind.model_fields) > 1)
        return
    yield model
    for field in model.model_fields.values():
        for module, part in re.findall(r"embedforge\.(recipe\.\w+)\.(\w+)", str(field.annotation)):
            yield from sections(getattr(importlib.import_module(f"embedforge.{module}"), part))


SECTIONS = {
    "Recipe": recipe.Recipe,
    "model": recipe_model.Model,
    "model.prune": Prune,
    "vocabulary": Vocabulary,
    "latent": recipe_model.Latent,
    "self_attention": recipe_model.SelfAttention,
    "model.adapter": recipe_model.Lora,
    "stages": recipe.Stage,
    "contrastive": objectives.Contrastive,
    "mntp": objectives.Mntp,
    "simcse": objectives.SimCSE,
    "merge": objectives.Merge,
    "mine_again": stage.MineAgain,
    "mix": recipe.Mix,
    "source": recipe.Source,
    "training": recipe.Training,
}
TERMS = {
    "distill": terms.Distill,
    "distill.teacher": terms.Teacher,
    "spread_out": terms.SpreadOut,
    "cosent": terms.Cosent,
    "matryoshka": terms.Matryoshka,
    "sum": terms.Sum,
}
TABLES = [
    *(("recipe-fields.md", *item) for item in SECTIONS.items()),
    *(("distillation.md", *item) for item in TERMS.items()),
    ("models.md", "The contract", Contract),
]


def test_every_section_of_a_recipe_has_a_table() -> None:
    assert {section for *_, section in TABLES} == set(sections(recipe.Recipe)) | {Contract, terms.Teacher}


def rows(page: str, heading: str) -> dict[str, str]:
    """Default by key, from the table `| key | type | default | meaning |` under a heading."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    part = re.split(rf"^#+ {re.escape(heading)}\n", text, flags=re.MULTILINE)[1]
    part = re.split(r"^#", part, flags=re.MULTILINE)[0]
    cells = (re.split(r"(?<!\\)\|", line)[1:4] for line in part.splitlines() if line.startswith("| `"))
    return {key.strip().strip("`"): default.strip() for key, _, default in cells}


def shown(default: Any) -> str:
    """A default as the tables write it: in backquotes, numbers and lists as JSON, words bare."""
    if isinstance(default, str) and re.fullmatch(r"[\w:-]+", default):
        return f"`{default}`"
    return f"`{json.dumps(default)}`"


@pytest.mark.parametrize(("page", "heading", "section"), TABLES)
def test_a_table_has_every_field_with_its_default(page: str, heading: str, section: type[BaseModel]) -> None:
    table = rows(page, heading)
    assert list(table) == list(section.model_fields)
    for key, field in section.model_fields.items():
        if field.is_required():
            assert table[key] == "required", key
        elif not isinstance(field.default, BaseModel):
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            assert table[key] == shown(default), key


def test_every_shipped_recipe_is_described() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in shipped_recipes())


# --- commands --------------------------------------------------------------------------------------


def commands() -> Iterator[Any]:
    """Lines of code blocks that call embedforge: fenced for a shell, or indented."""
    for page in PAGES:
        indented = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.DOTALL)
        lines = [line for line in indented.splitlines() if line.startswith("    ")]
        shell = [block.text for block in BLOCKS if block.page == page.name and block.language == "bash"]
        for line in [*lines, *"".join(shell).replace("\\\n", " ").splitlines()]:
            if re.search(r"(^|\s)embedforge [a-z-]", line):
                yield pytest.param(line, id=f"{page.name}: {line.strip()}")


def command_of(verb: str, words: list[str]) -> tuple[Any, list[str]]:
    """What a verb runs, with a verb of its own as in `recipe list`, and the words that follow."""
    assert verb in VERBS, f"no verb '{verb}'"
    command = VERBS[verb]
    if words and hasattr(command, "default") and words[0] not in command.commands:
        words = [command.default, *words]  # `index FOLDER`
    if words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"no verb '{verb} {words[0]}'"
        return command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("line", commands())
def test_a_command_line_can_be_read(line: str) -> None:
    """Verb, options, and the number and types of the arguments are right; nothing is run."""
    for call in re.findall(r"(?:^|\s)embedforge ([a-z-].*)", line):
        verb, *arguments = shlex.split(re.split(r" [>|;&]", call)[0], comments=True)
        command, arguments = command_of(verb, arguments)
        command.make_context(verb, arguments)


def mentions() -> Iterator[Any]:
    for page in PAGES:
        prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.DOTALL)
        for span in dict.fromkeys(re.findall(r"`(embedforge [^`]+)`", prose)):
            yield pytest.param(span, id=f"{page.name}: {span}")


@pytest.mark.parametrize("span", mentions())
def test_a_command_in_the_text_exists(span: str) -> None:
    """A mention may leave arguments out; its verb and options have to be there."""
    _, *words = shlex.split(span)
    command, rest = command_of(*words[:1], words[1:])
    known = {name for parameter in command.params for name in (*parameter.opts, "-h", "--help")}
    assert {word.partition("=")[0] for word in rest if word.startswith("-")} <= known


def test_every_verb_and_option_of_evaluate_is_documented() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert all(f"embedforge {verb}" in text for verb in VERBS)
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    options = {parameter.opts[0] for parameter in VERBS["evaluate"].params if parameter.opts[0][0] == "-"}
    assert all(f"`{option}" in page for option in options)


# --- data ------------------------------------------------------------------------------------------


def write_beir(folder: Path, page: str, split: str) -> None:
    (folder / "qrels").mkdir(parents=True)
    for block in BLOCKS:
        if block.page == page and block.about in {("corpus",), ("queries",)}:
            (folder / f"{block.about[0]}.jsonl").write_text(block.text, encoding="utf-8")
        elif block.page == page and block.about == ("qrels",):
            (folder / "qrels" / f"{split}.tsv").write_text(block.text, encoding="utf-8")


@pytest.mark.parametrize("block", [b for b in blocks("jsonl", "csv") if b.values[0].page == "data.md"])
def test_training_data_is_read(block: Block, tmp_path: Path) -> None:
    (kind,) = block.about
    if kind in {"corpus", "queries"}:
        write_beir(tmp_path / "beir", block.page, "train")
        source = Source(path=str(tmp_path / "beir"), kind="retrieval")
    else:
        file = tmp_path / f"rows.{block.language}"
        file.write_text(block.text, encoding="utf-8")
        source = Source(path=str(file), kind=kind)
    assert read_source(source, seed=0)


@pytest.mark.parametrize("block", [b for b in blocks("jsonl") if b.values[0].page == "evaluation.md"])
def test_evaluation_data_is_read(block: Block, tmp_path: Path) -> None:
    pytest.importorskip("mteb")
    from embedforge.evaluate.tasks import find_tasks

    for kind in block.about:
        if kind in {"corpus", "queries"}:
            write_beir(tmp_path / "retrieval" / "example", block.page, "test")
        for split in ("train", "test") if kind not in {"corpus", "queries"} else ():
            file = tmp_path / kind / "example" / f"{split}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
    tasks = find_tasks(str(tmp_path))
    assert len(tasks) == len(block.about)
    for task in tasks:
        task.load_data()
        assert task.dataset


def test_the_table_of_task_types_is_complete() -> None:
    pytest.importorskip("mteb")
    from embedforge.evaluate.tasks import TYPES

    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert all(f"| `{kind}` |" in text for kind in TYPES)


# --- the rest --------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("python"))
def test_python_compiles_and_its_imports_exist(block: Block) -> None:
    compile(block.text, block.place, "exec")
    imports = [line for line in block.text.splitlines() if re.match(r"(from|import) ", line)]
    exec("\n".join(imports), {})


def anchors(page: Path) -> set[str]:
    """Headings as GitHub turns them into anchors."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name} links to {link}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name}: {link} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_short(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").splitlines()) < 250


def test_the_map_of_the_code_is_true() -> None:
    """Every file, folder and name in docs/architecture.md is there."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    src = ROOT / "src" / "embedforge"
    places = re.findall(r"`([a-z_]+/(?:[a-z_]+\.py)?)(?:: (\w+))?`", text)
    assert len(places) > 40
    for path, name in places:
        assert (src / path).exists() or (ROOT / path).exists(), path
        if name:
            code = (src / path).read_text(encoding="utf-8")
            assert re.search(rf"^(class|def) {name}\b", code, re.MULTILINE), f"{path}: {name}"
    drawn = set(re.findall(r"\b([a-z]+/(?:[a-z_]+\.py)?)", re.findall(r"```(.*?)```", text, re.DOTALL)[0]))
    assert [path for path in drawn if not (src / path).exists()] == []
