"""The documentation says what the code does: recipes parse, commands exist, data lines are read."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from embedforge import recipe
from embedforge.cli import app
from embedforge.data.convert import read_source
from embedforge.errors import EmbedforgeError
from embedforge.recipe import Source, load_recipe, objectives, parse_recipe, shipped_recipes, stage, terms
from embedforge.recipe import model as recipe_model
from embedforge.recipe.base import Kinds
from embedforge.recipe.prune import Prune, Vocabulary
from embedforge.text.contract import Contract
from embedforge.train.mixtures import unseen_instruction

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


def test_the_readmes_recipe_asks_as_it_trains() -> None:
    """It printed a warning that encode_query's instruction is in no training query."""
    block = next(block for block in BLOCKS if block.page == "README.md" and block.language == "yaml")
    shown = parse_recipe(yaml.safe_load(block.text), block.place)
    asked = [source.instruction for one in shown.stages for source in one.mix.sources]
    assert unseen_instruction(shown.contract, [text for text in asked if text]) is None


MARKS = {
    "nv-embed-v1": ["eos_survives_truncation", "max_grad_norm", "mask_false_negatives", "symmetric"],
    "nv-embed-v2": ["eos_survives_truncation", "max_grad_norm", "mask_false_negatives", "symmetric"],
    "e5-mistral": ["eos_survives_truncation", "max_grad_norm", "mask_false_negatives", "symmetric"],
    "llm2vec-unsup": ["eos_survives_truncation", "text_max_tokens", "max_grad_norm", "mask_false_negatives"],
    "llm2vec-sup": ["max_grad_norm", "mask_false_negatives", "symmetric"],
}


@pytest.mark.parametrize("name", MARKS)
def test_a_papers_recipe_says_where_each_setting_is_from(name: str) -> None:
    """A line with a value bears a mark, unless a line above it stands for its whole section."""
    text = shipped_recipes()[name].read_text(encoding="utf-8")
    for key in MARKS[name]:
        lines = [line for line in text.splitlines() if re.search(rf"\b{key}: ", line)]
        assert lines, f"{name} leaves {key} to a default"
        assert all(re.search(r"\[(paper|code|memory|ours|adapter)", line) for line in lines), key


def test_every_shipped_recipe_is_described() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in shipped_recipes())


# --- commands --------------------------------------------------------------------------------------


OWN_OPTIONS = {"--help", "--version", "--install-completion", "--show-completion"}
"""Of the program itself."""


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
        if verb in OWN_OPTIONS:
            continue
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


VERBS_RECIPES = {"quickstart": "tiny", "adapt": "llm2vec-tiny", "distill": "distill-small", "train": "tiny"}
SETTING = re.compile(r"--set[ =]('[^']+'|[\w.-]+=(?:'[^']+'|\"[^\"]+\"|[^\s`;,)]+))")


def settings() -> Iterator[Any]:
    """Every example of --set: in the pages, in the shipped recipes, in what --help prints."""
    texts = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
    texts |= {f"{name}.yaml": path.read_text(encoding="utf-8") for name, path in shipped_recipes().items()}
    for verb, command in VERBS.items():
        for name, part in getattr(command, "commands", {"": command}).items():
            helps = [part.help, part.epilog, *(getattr(one, "help", "") for one in part.params)]
            texts[f"{verb} {name} --help".replace("  ", " ")] = " ".join(filter(None, helps))
    for where, text in texts.items():
        for found in dict.fromkeys(SETTING.findall(text)):
            if found.lower() != "key=value":
                yield pytest.param(where, "".join(shlex.split(found)), id=f"{where}: {found}")


@pytest.mark.parametrize(("where", "setting"), settings())
def test_an_example_of_set_names_a_key_that_is_there(where: str, setting: str) -> None:
    """Of the verb's own recipe in its help; else of a shipped one, or of the README's."""
    own = [
        name for name in (*VERBS_RECIPES, *shipped_recipes()) if where.startswith((f"{name} ", f"{name}."))
    ]
    names = [VERBS_RECIPES.get(name, name) for name in own] or ["tiny", "llm2vec-tiny", "nv-embed-v2"]
    for name in names:
        with contextlib.suppress(EmbedforgeError):
            load_recipe(name, [setting])
            return
    readme = next(block for block in BLOCKS if block.page == "README.md" and block.language == "yaml")
    values = yaml.safe_load(readme.text)
    assert not own, f"{setting} is no key of {names}"
    key = setting.partition("=")[0].split(".")
    for part in key[:-1]:  # pairs.cap: a source has the name of its file
        named = (
            {item.get("name") or Path(item.get("path", "")).stem: item for item in values if item}
            if (isinstance(values, list))
            else values
        )
        values = named.get(part, {})
    assert values, f"{setting} is no key of a recipe"


OTHERS = {
    "--default-prompt-name",
    "--editable",
    "--index-url",
    "--no-deps",
    "--nproc-per-node",
    "--standalone",
}
"""Options of other programs."""


def test_every_option_that_is_spoken_of_exists() -> None:
    commands = [part for one in VERBS.values() for part in getattr(one, "commands", {"": one}).values()]
    known = {
        name
        for one in commands
        for parameter in one.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    } | OTHERS
    known |= OWN_OPTIONS
    for program in [*(ROOT / "scripts").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        known |= set(re.findall(r'"(--[a-z0-9-]+)"', program.read_text(encoding="utf-8")))
    spoken = {
        (page.name, option)
        for page in PAGES
        for span in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", span)
    }
    assert sorted(one for one in spoken if one[1] not in known) == []


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


def is_installed(module: str) -> bool:
    """Tell whether a module is there; of a namespace that several packages share one may be."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("block", blocks("python"))
def test_python_compiles_and_its_imports_exist(block: Block) -> None:
    compile(block.text, block.place, "exec")
    imports = [line for line in block.text.splitlines() if re.match(r"(from|import) ", line)]
    if block.page == "use.md":  # other libraries: scripts/use_snippets.py runs those that are installed
        imports = [line for line in imports if is_installed(line.split()[1])]
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


def test_the_page_for_language_models_leads_somewhere() -> None:
    text = (ROOT / "llms.txt").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []
    pages = {page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").glob("*.md")}
    assert pages - set(links) <= {"docs/bases.md", "docs/families.md", "docs/sweep.md"}


def test_the_containers_install_what_there_is_and_serve_by_options_that_exist() -> None:
    """They cannot be built here: no daemon. What they name is checked."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    for name in ("Dockerfile", "Dockerfile.cuda"):
        text = (ROOT / name).read_text(encoding="utf-8")
        (named,) = re.findall(r"\$wheel\[([a-z,]+)\]", text)
        assert set(named.split(",")) <= set(extras["optional-dependencies"])
        assert all(f"!{source}" in allowed for source in re.findall(r"^COPY (\S+)", text, re.MULTILINE))
        assert f'ENTRYPOINT ["{next(iter(extras["scripts"]))}"]' in text
    assert re.search(r"^torch==[\d.]+$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    for service in yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"].values():
        verb, *options = service["command"]
        port = VERBS[verb].make_context(verb, options).params["port"]
        assert f':{port}"' in json.dumps(service["ports"])


def test_the_shell_completes_verbs_and_options() -> None:
    for words, expected in (("embedforge quick", "quickstart"), ("embedforge push --dry", "--dry-run")):
        asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        result = CliRunner().invoke(
            app, [], prog_name="embedforge", env={"_EMBEDFORGE_COMPLETE": "complete_bash", **asked}
        )
        assert result.output.split() == [expected]


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
