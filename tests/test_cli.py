"""The command line: help that teaches, errors that are one message, and verbs that work together."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
import types
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from conftest import Run
from embedforge import __version__, cli
from embedforge.errors import EmbedforgeError
from embedforge.recipe import load_recipe, shipped_recipes
from sources_for_tests import file_of, write_sources

VERBS = {
    "quickstart": ("held-out text", "--minutes", "--restart", "Run it again to resume after Ctrl-C"),
    "adapt": ("from their text alone", "LLM2Vec", "--minutes", "again to resume after Ctrl-C"),
    "train": ("sentence-transformers", "--set", "stages.retrieval.steps=100", "--resume"),
    "recipe": ("list", "copy one to edit", "Start with: embedforge recipe list"),
    "base": ("list", "any other base is a folder or a hub id"),
    "show": ("row counts", "--schema", "--json"),
    "synthesize": ("nothing is paid twice", "OpenAI-compatible", "--corpus", "--max-cost", "the paper's 93"),
    "curate": ("What is dropped, and why", "--against", "catalog:NAME", "E5's filter"),
    "mine": ("what is safely no answer", "read audit.html before", "--teacher", "--memory-gb"),
    "catalog": ("who used how much of them", "--paper", "--check"),
    "evaluate": ("bm25", "--tasks", "finished tasks are kept"),
    "search": ("-k", "What to look for", "--filter", "--json", "by default fused"),
    "index": ("index FOLDER", "files", "add", "remove", "compact"),
    "export": ("its adapters merged", "--to", "--int8", "--adapter", "in the order of training", "--dtype"),
    "convert": ("NV-Embed", "shard by shard"),
    "probe": ("layer by layer", "embedforge:base"),
    "prune": ("bit by bit", "--layers", "--vocabulary", "may be repeated", "model.base=OUT"),
    "encode": ("--rows-per-shard", "manifest.json", "--dim"),
    "distill": ("teacher", "--student"),
    "sweep": ("--grid", "--seeds"),
    "compress": ("--tasks", "vectors", "weights"),
    "serve": ("--api-key", "429", "SIGTERM"),
    "push": ("--dry-run", "hub"),
    "merge": ("model soups", "slerp", "--dev", "never worse there than the best one", "OUT/merge.json"),
}


def spawn(
    code_or_module: list[str], folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *code_or_module],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **(environment or {})},
    )


# --- help ----------------------------------------------------------------------------------------


def test_the_list_of_verbs_is_complete() -> None:
    assert set(get_command(cli.app).commands) == set(VERBS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_teaches(verb: str) -> None:
    command = get_command(cli.app).commands[verb]  # type: ignore[attr-defined]
    missing = [parameter.name for parameter in command.params if not parameter.help]
    assert not missing, f"no help for {missing}"
    result = CliRunner(env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).invoke(cli.app, [verb, "-h"])
    assert result.exit_code == 0
    text = " ".join(result.output.replace("│", " ").split())
    for part in VERBS[verb]:
        assert part in text


@pytest.mark.parametrize(
    ("verb", "part"),
    [
        ("list", "Then: embedforge recipe show NAME"),
        ("show", "stages.retrieval.steps=100"),
        ("copy", "Example: embedforge recipe copy nv-embed-v2 --out mine.yaml"),
    ],
)
def test_every_verb_of_recipes_teaches(verb: str, part: str) -> None:
    command = get_command(cli.app).commands["recipe"].commands[verb]  # type: ignore[attr-defined]
    assert all(parameter.help for parameter in command.params)
    text = CliRunner(env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).invoke(cli.app, ["recipe", verb, "-h"])
    assert part in " ".join(text.output.split())


def test_help_without_a_verb_names_all_and_where_to_start() -> None:
    runner = CliRunner(env={"COLUMNS": "200"})
    for arguments in (["--help"], []):
        output = runner.invoke(cli.app, arguments).output
        assert all(verb in output for verb in VERBS)
        assert "Start with: embedforge quickstart" in output
    assert runner.invoke(cli.app, ["--version"]).output == f"embedforge {__version__}\n"


def test_help_and_show_import_neither_torch_nor_transformers(tmp_path: Path) -> None:
    """In one process: all help texts, and every shipped recipe with the rows of its sources."""
    stages = [(name, stage) for name in shipped_recipes() for stage in load_recipe(name).stages]
    for name in shipped_recipes():
        write_sources(load_recipe(name), tmp_path)
    lines = [["--help"], *([verb, "--help"] for verb in VERBS)]
    lines += [["recipe", "list"], ["recipe", "copy", "llm2vec-simcse"]]
    for name in shipped_recipes():
        # A step must not take more rows than there are.
        small = [f"stages.{stage.name}.batch_queries=4" for owner, stage in stages if owner == name]
        changes = [word for change in small for word in ("--set", change)]
        lines.append(["show", name, "--data", str(tmp_path), *changes])
    code = (
        "import sys\n"
        "from embedforge import cli\n"
        f"for line in {lines!r}:\n"
        "    sys.argv = ['embedforge', *line]\n"
        "    try:\n"
        "        cli.main()\n"
        "    except SystemExit as stop:\n"
        "        assert not stop.code, (line, stop.code)\n"
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'numpy.f2py'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = spawn(["-c", code], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in shipped_recipes():
        assert f"name: {name}" in done.stdout
        assert f"\n{name}: {load_recipe(name).about}" in done.stdout
    elsewhere = [stage for _, stage in stages if not all(map(file_of, stage.mix.sources))]
    assert done.stdout.count("not counted") == len(elsewhere) < len(stages) / 3
    assert "66 rows" in done.stdout


# --- recipes --------------------------------------------------------------------------------------


def test_the_list_of_recipes_says_what_each_is(run: Run) -> None:
    listed = " ".join(run("recipe", "list")[1].split())
    assert all(name in listed for name in shipped_recipes())
    assert "retrieval: contrastive, 1,500 steps" in listed


def test_recipe_show_is_show(run: Run) -> None:
    assert run("recipe", "show", "tiny", "--json")[1] == run("show", "tiny", "--json")[1]


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_copied_recipe_is_the_shipped_one_wherever_it_lies(run: Run, tmp_path: Path, name: str) -> None:
    """Comments and all; what it extends is still found."""
    copy = tmp_path / "far" / "away" / "mine.yaml"
    said = run("recipe", "copy", name, "--out", str(copy))[1]
    assert copy.read_bytes() == shipped_recipes()[name].read_bytes()
    assert load_recipe(str(copy)) == load_recipe(name)
    assert f"embedforge train {copy} --out run" in said
    assert ("which it extends" in said) == ("\nextends: " in copy.read_text())


def test_copying_a_recipe_overwrites_nothing(run: Run, tmp_path: Path) -> None:
    assert run("recipe", "copy", "tiny", "--out", str(tmp_path))[0] == 0
    (tmp_path / "tiny.yaml").write_text("mine")
    again = run("recipe", "copy", "tiny", "--out", str(tmp_path / "tiny.yaml"))
    assert again[0] == 1
    assert "is there already" in again[2]
    assert (tmp_path / "tiny.yaml").read_text() == "mine"
    assert "Did you mean 'tiny'?" in run("recipe", "copy", "tinny")[2]
    assert "ends in .yaml or .yml" in run("recipe", "copy", "tiny", "--out", str(tmp_path / "x.txt"))[2]


# --- errors --------------------------------------------------------------------------------------

SOURCES = Path(cli.__file__).parent
MISTAKES = {
    "train tiny": "there is no such file",
    "train tny": "neither a file nor one of the shipped recipes",
    "show tny": "neither a file nor one of the shipped recipes",
    "mine none.jsonl --teacher bm25": "there is no such file",
    "mine none.jsonl --teacher bm25 --rule top": "no keep rule 'top'",
    "mine none.jsonl --teacher bm26": "Did you mean 'bm25'?",
    "curate none.jsonl": "there is no such file",
    "synthesize --endpoint here --model m": "is no address",
    "evaluate /none --tasks tasks": "there is no such folder",
    "evaluate bm25 --tasks ./none": "--tasks ./none: there is no such folder",
    "evaluate bm25 --tasks .": "no datasets, so none with a split 'test'",
    "compress embedforge:forge-tiny --tasks .": "no datasets",
    "evaluate bm25 --tasks tasks --instruction a": "TASK=TEXT",
    "search none a": "there is no index here",
    "search none a --mode words": "there is fused, dense, lexical",
    "index . --model /none": "there is no such folder",
    "index .": "nothing to",
    f"index {__file__} --out {Path(__file__).parent}": "this folder holds something else",
    f"index {__file__} --out {__file__}": "this is a file, a folder is to be written here",
    f"index {__file__} --model ''": "there is an empty word after '--model'",
    "quickstart ''": "there is an empty word after 'quickstart'",
    "train tiny --out=": "there is an empty word after '--out'",
    "evaluate bm25 --tasks . --tasks ..": "--tasks is given twice",
    "train tiny --device cpu --out=a --device cpu": "--device is given twice",
    "index files . -o a --out=b": "--out is given twice",
    "adapt ~nosuch/x": "there is no such",
    "evaluate ~nosuch/x --tasks .": "there is no such path: Could not determine home directory",
    "compress embedforge:forge-tiny --tasks . --instruction a": "TASK=TEXT",
    f"distill http://me:secret@h/v1#m --text {SOURCES} --student embedforge:base": "no user, password",
    f"distill http://h:99999/v1#m --text {SOURCES} --student embedforge:base": "is no address",
    f"distill embedforge:forge-tiny --text {SOURCES} --recipe tiny": "objective distill",
    "index add none .": "nothing to",
    "index remove none a": "there is no index here",
    "export /none out": "there is no such folder",
    "export embedforge:base out --adapter /none": "there is no such folder",
    "convert none out": "there is no such file",
    "probe /none": "there is no such folder",
    f"export embedforge:forge-tiny {__file__}/x --to onnx": "is a file, and a folder is to be written here",
    f"prune embedforge:base {__file__}/x --layers 1": "is a file, and a folder is to be written here",
    f"merge embedforge:forge-tiny embedforge:base --out {__file__}/x": "is a file, and a folder",
    f"sweep tiny --grid training.log_steps=1,2 --out {__file__}/x": "is a file, and a folder",
    "catalog none": "there is no 'none'",
    "evaluate no-such-model --tasks .": "no datasets",
    "evaluate no-such-model --tasks STSBenchmark": "could not be fetched from the hub",
    "serve nobody/no-such-model": "could not be fetched from the hub",
    "export nobody/no-such-model out": "could not be fetched from the hub",
    "export nobody/no-such-model out --to nonsense": "nonsense",
    f"distill nobody/a --text {SOURCES} --student nobody/b": "'nobody/b' is no folder here",
}
"""Command lines with a mistake that shows before any model is loaded, and what is said of it."""


def test_mistakes_are_found_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from embedforge import cli\n"
        f"for line in {[shlex.split(line) for line in MISTAKES]!r}:\n"
        "    sys.argv = ['embedforge', *line]\n"
        "    try:\n"
        "        cli.main()\n"
        "    except SystemExit as stop:\n"
        "        assert stop.code == 1, (line, stop.code)\n"
        "    heavy = {'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)\n"
        "    assert not heavy, (line, heavy)\n"
        "    print(file=sys.stderr)\n"
    )
    done = spawn(["-c", code], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [" ".join(part.split()) for part in done.stderr.split("\n\n")]
    for message, (line, expected) in zip(said, MISTAKES.items(), strict=False):
        assert expected in message, (line, message)
    assert not [path for path in tmp_path.iterdir() if path.name != "mined"]


def test_an_error_is_one_message_without_traceback_and_exit_code_1(tmp_path: Path) -> None:
    done = spawn(["-m", "embedforge", "train", "tinny"], tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "embedforge: there is no recipe 'tinny': neither a file nor one of the shipped recipes "
        f"({', '.join(shipped_recipes())}). Did you mean 'tiny'?"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "nv-embed-v3"), "Did you mean 'nv-embed-v"),
        (("show", "tiny", "--set", "sead=1"), "sead: unknown key. Did you mean 'seed'?"),
        (("train", "tiny", "--set", "stages.retrieval.steps=many"), "stages.0.steps"),
        (("train", "tiny", "--set", "seed=1", "--set", "seed=2"), "--set seed: it is set twice"),
        (("train", "tiny", "--set", "about=[half"), "--set about=[half: the value is not valid YAML"),
        (("search", ".", "words"), "there is no index here; make one with: embedforge quickstart"),
        (("convert", "nowhere", "out"), "nowhere/config.json: there is no such file"),
        (("evaluate", "bm25", "--tasks", "x", "--instruction", "no equals sign"), "takes TASK=TEXT"),
        (("probe", "./nowhere"), "./nowhere: there is no such folder"),
        (("merge", "nobody/a", "nobody/b", "--out", "x", "--how", "max"), "by mean or slerp, not by 'max'"),
        (("compress", "weights", "nobody/a", "--out", "x"), "nothing is to be done"),
    ],
)
def test_bad_input_exits_with_1(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code == 1
    assert out == ""
    assert err.startswith("embedforge: ")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_an_option_twice_is_no_obstacle_where_nothing_is_lost(run: Run, tmp_path: Path) -> None:
    assert "Usage" in run("evaluate", "--tasks", "a", "--tasks", "b", "--help")[1]
    flags = run("adapt", str(tmp_path / "none"), "--restart", "--restart")
    assert "there is no such" in flags[2]
    complete = {"_EMBEDFORGE_COMPLETE": "complete_bash", "COMP_CWORD": "7"}
    words = "embedforge train tiny --device cpu --device cpu --"
    code = "import sys; from embedforge.cli import main; sys.argv = ['embedforge']; main()"
    done = spawn(["-c", code], tmp_path, complete | {"COMP_WORDS": words})
    assert "--out" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("trian", "tiny"), ("train",), ("search", ".", "x", "-k", "0"), ("show",), ("show", "tiny", "--nope")],
)
def test_a_command_line_that_cannot_be_read_exits_with_2(run: Run, arguments: tuple[str, ...]) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert "Usage: embedforge" in err


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (EmbedforgeError("what\nand the way out"), 1, "embedforge: what\nand the way out\n"),
        (PermissionError(13, "Permission denied", "/run"), 1, "embedforge: /run: Permission denied\n"),
        (OSError("the network is gone"), 1, "embedforge: the network is gone\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_stops_a_verb_decides_the_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, failure: BaseException, code: int, message: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setitem(sys.modules, "embedforge.show", types.SimpleNamespace(show=fails))
    found, _, err = run("show", "tiny")
    assert found == code
    assert err.strip() == message.strip()


def test_the_schema_needs_no_recipe(run: Run) -> None:
    code, out, err = run("show", "--schema")
    assert code == 0, err
    assert json.loads(out)["title"] == "Recipe"


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedforge.show", types.SimpleNamespace(show=None))
    monkeypatch.setattr(sys, "argv", ["embedforge", "show", "tiny"])
    with pytest.raises(TypeError):
        cli.main()


def test_warnings_of_the_package_are_printed_as_notes(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("--version")
    run("--version")  # said once, however often the entry point was called
    capsys.readouterr()
    logging.getLogger("embedforge.data.labels").warning("source '[bold]a': %d rows alone", 3)
    assert capsys.readouterr().err == "note: source '[bold]a': 3 rows alone\n"
