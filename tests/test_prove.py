"""`embedforge quickstart` and `adapt`, whole: a folder in; a model, a report and an index out; and again."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file
from transformers import MistralConfig, MistralModel, PreTrainedTokenizerFast, TrainerCallback

import embedforge
from embedforge.errors import EmbedforgeError
from embedforge.files import read_json
from embedforge.prove import phases
from embedforge.prove.figures import FUSED
from embedforge.prove.run import adapt, quickstart
from embedforge.prove.systems import AS_IT_CAME, TRAINED, UNTRAINED
from embedforge.search.run import search
from embedforge.train import run as train_run

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "ar", "en", "il")]
SYSTEMS = [AS_IT_CAME, UNTRAINED, "after mntp", TRAINED]
FEW_STEPS = [
    "stages.mntp.steps=5",
    "stages.mntp.batch_queries=4",
    "stages.simcse.steps=5",
    "stages.simcse.batch_queries=8",
    "contract.max_tokens=64",
    "stages.mntp.objective.chunk_tokens=64",
    "stages.simcse.document_max_tokens=32",
    "training.precision=float32",
    "training.save_steps=2",
    "training.log_steps=1",
]


PAIR_STEPS = [
    "stages.retrieval.steps=6",
    "stages.retrieval.batch_queries=8",
    "stages.generalist.steps=6",
    "stages.generalist.batch_queries=8",
    "training.precision=float32",
    "training.save_steps=2",
    "training.log_steps=1",
]


def words(draw: random.Random, count: int) -> str:
    return " ".join("".join(draw.choices(SYLLABLES, k=3)) for _ in range(count))


def write_documents(folder: Path, files: int, sections: int) -> Path:
    """Markdown files whose headings share words with the text below."""
    draw = random.Random(0)
    for number in range(files):
        parts = [f"# {words(draw, 3).title()}\n"]
        for _ in range(sections):
            heading = words(draw, 3)
            sentences = [f"{words(draw, 5).capitalize()} {heading} {words(draw, 4)}." for _ in range(4)]
            parts.append(f"## {heading.title()}\n\n{' '.join(sentences)}\n")
        (folder / f"document_{number}.md").write_text("\n".join(parts), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("documents"), 40, 4)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Python modules whose docstrings and code share words that no other function has."""
    return write_library(tmp_path_factory.mktemp("library"), range(40))


def write_library(folder: Path, modules: range) -> Path:
    for number in modules:
        draw, functions = random.Random(number), []
        for _ in range(8):
            name, argument, one, other, more = (words(draw, 1) for _ in range(5))
            functions.append(
                f"def {name}({argument}):\n"
                f'    """Turn the {name} of a {argument} into {one} and {other}."""\n'
                f"    return {one}({argument}, {other}, {more}, {argument}.{name}, {number})\n"
            )
        (folder / f"module_{number}.py").write_text("\n\n".join(functions), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A decoder that was saved without its language-model head."""
    folder = tmp_path_factory.mktemp("headless")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    MistralModel(
        MistralConfig(
            vocab_size=len(tiny_tokenizer),
            num_key_value_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=False,
            **shape,
        )
    ).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def adapted(folder: Path, out: Path, base: Path, **settings: Any) -> dict[str, Any]:
    return adapt(
        folder, out, base=str(base), device="cpu", **{"overrides": FEW_STEPS, "minutes": 60.0, **settings}
    )


def quickstarted(folder: Path, out: Path, base: Path, **settings: Any) -> dict[str, Any]:
    return quickstart(
        folder, out, base=str(base), device="cpu", **{"overrides": PAIR_STEPS, "minutes": 60.0, **settings}
    )


class Killed(Exception):
    """Stands for kill -9: nothing of the run's own code sees it coming."""


@pytest.fixture(scope="module")
def finished_pairs(tmp_path_factory: pytest.TempPathFactory, library: Path, tiny_base: Path) -> Path:
    out = tmp_path_factory.mktemp("quickstart") / "out"
    quickstarted(library, out, tiny_base)
    return out


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, documents: Path, tiny_base: Path) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    adapted(documents, out, tiny_base)
    return out


def weights_of(out: Path) -> dict[str, np.ndarray]:
    stored = load_file(str(out / "run" / "model" / "model.safetensors"))
    return {name: value.numpy() for name, value in stored.items()}


def test_pairs_are_trained_on_and_compared_with_the_decoder_as_it_came(finished_pairs: Path) -> None:
    report = read_json(finished_pairs / "report.json")
    assert report["systems"] == [AS_IT_CAME, TRAINED]
    assert report["documents"] > report["questions"]["all"] > 10
    ndcg = report["retrieval"]["all"]["ndcg@10"]
    assert ndcg["values"]["BM25"]["mean"] > 0.5, "the words are shared: BM25 must find them"
    assert set(ndcg["trained minus"]) == {"BM25", AS_IT_CAME, FUSED}
    assert set(report["clustering, v-measure"]["values"]) == {AS_IT_CAME, TRAINED}
    assert report["mntp loss, nats a token"] is None
    assert report["details"]["steps"] == {"retrieval": 6, "generalist": 6}
    assert set(report["details"]["seconds"]) == {
        "read",
        "plan",
        "before",
        "train",
        "after",
        "index",
        "report",
    }
    page = (finished_pairs / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 4
    for text in (
        "BM25",
        "Training loss, stage retrieval",
        "A map of held-out passages",
        "Clustering by part",
    ):
        assert text in page
    assert "MNTP" not in page


def test_nothing_that_is_asked_was_trained_on(finished_pairs: Path) -> None:
    data = finished_pairs / "data"
    pairs, train_pairs = (rows(data / name) for name in ("pairs.jsonl", "train-pairs.jsonl"))
    held_out = {pair["file"] for pair in pairs}
    assert held_out.isdisjoint(pair["file"] for pair in train_pairs)
    for name in ("retrieval.jsonl", "same-part.jsonl"):
        trained = {json.dumps(row) for row in rows(data / name)}
        assert trained
        assert not any(
            pair["query"] in row or json.dumps(pair["document"]) in row for pair in pairs for row in trained
        )


def test_the_index_holds_every_described_definition_by_the_vectors_of_the_model(finished_pairs: Path) -> None:
    (segment,) = (finished_pairs / "index").glob("segment-*")
    documents = rows(segment / "documents.jsonl")
    assert len(documents) == 40 * 8
    st = embedforge.load(str(finished_pairs / "model"), device="cpu")
    hits = search(finished_pairs, "Turn one thing into another", k=3, mode="dense", device="cpu")
    query = st.encode_query("Turn one thing into another")
    for hit in hits:
        assert hit.score == pytest.approx(float(query @ st.encode_document(hit.document.text)), abs=0.02)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_embedder_is_searched_with_while_it_is_trained(
    finished_pairs: Path, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    short = [
        f"stages.{stage}.{text}_max_tokens=null"
        for stage in ("retrieval", "generalist")
        for text in ("query", "document")
    ]
    settings = {"recipe_name": "quickstart", "overrides": [*PAIR_STEPS, "contract.max_tokens=64", *short]}
    base, out, training = finished_pairs / "run" / "model", tmp_path / "out", phases.train
    monkeypatch.setattr(phases, "train", killed)
    with pytest.raises(Killed):
        quickstarted(library, out, base, **settings)
    question = read_json(finished_pairs / "report.json")["question"]
    at_once = search(out, question, mode="dense", device="cpu")
    assert at_once
    monkeypatch.setattr(phases, "train", training)
    quickstarted(library, out, base, **settings)
    assert not (out / "as-it-came").exists()
    assert read_json(out / "index" / "index.json")["model"] == str(out / "model")
    assert search(out, question, mode="dense", device="cpu")


@pytest.mark.parametrize("verb", ["quickstart", "adapt"])
def test_a_run_whose_folder_has_changed_is_refused_and_started_anew_if_so_asked(
    verb: str, tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after training, more modules copied in, the same command again: once a proof of nothing."""
    run = quickstarted if verb == "quickstart" else adapted
    folder, out = tmp_path / "folder", tmp_path / "out"
    folder.mkdir()
    write_library(folder, range(30))

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(phases, "index_folder", kill)
        with pytest.raises(Killed):
            run(folder, out, tiny_base)
    before = rows(out / "data" / "train-pairs.jsonl")
    write_library(folder, range(30, 34))
    (folder / "module_3.py").unlink()
    with pytest.raises(
        EmbedforgeError, match=r"4 added \(module_30.py.*1 removed \(module_3.py\).*--restart"
    ):
        run(folder, out, tiny_base)
    assert rows(out / "data" / "train-pairs.jsonl") == before, "nothing is lost"
    report = run(folder, out, tiny_base, restart=True)
    assert report["read"]["files_code"] == 33
    assert rows(out / "earlier-1" / "data" / "train-pairs.jsonl") == before, "moved, not deleted"
    held_out = {pair["file"] for pair in rows(out / "data" / "pairs.jsonl")}
    assert held_out.isdisjoint(pair["file"] for pair in rows(out / "data" / "train-pairs.jsonl"))
    os.utime(folder / "module_5.py")  # touched, not changed
    assert run(folder, out, tiny_base) == report
    (folder / "module_5.py").write_text("x = 1")
    with pytest.raises(EmbedforgeError, match=r"1 changed \(module_5.py\)"):
        run(folder, out, tiny_base)


def test_a_file_of_the_run_that_was_edited_is_refused(
    library: Path, tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    monkeypatch.setattr(phases, "train", kill)
    with pytest.raises(Killed):
        quickstarted(library, tmp_path / "out", tiny_base)
    for name in ("pairs.jsonl", "retrieval.jsonl"):
        file = tmp_path / "out" / "data" / name
        written = file.read_bytes()
        file.write_bytes(written[: len(written) // 2])
        with pytest.raises(EmbedforgeError, match=rf"{name}: this is not what the run has written"):
            quickstarted(library, tmp_path / "out", tiny_base)
        file.write_bytes(written)


def test_starting_anew_touches_nothing_but_what_a_run_of_ours_left(
    library: Path, tmp_path: Path, tiny_base: Path
) -> None:
    theirs = tmp_path / "theirs"
    (theirs / "data").mkdir(parents=True)
    (theirs / "prove.json").write_text('{"a": 1}', encoding="utf-8")
    (theirs / "data" / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(EmbedforgeError):
        quickstarted(library, theirs, tiny_base, restart=True)
    assert (theirs / "data" / "thesis.txt").exists()
    ours = tmp_path / "ours"
    quickstarted(library, ours, tiny_base)
    (ours / "data" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(EmbedforgeError, match="no such folder"):
        quickstarted(library, ours, tmp_path / "nosuch" / "base", restart=True)
    assert (ours / "earlier-1" / "data" / "notes.txt").exists()
    assert (ours / "earlier-1" / "run" / "model" / "contract.json").exists(), "a failed start loses nothing"


def test_a_run_inside_its_folder_does_not_read_itself(tmp_path: Path, tiny_base: Path) -> None:
    write_library(tmp_path, range(30))
    report = quickstarted(tmp_path, tmp_path / "out", tiny_base)
    assert quickstarted(tmp_path, tmp_path / "out", tiny_base) == report
    assert "files_html" not in report["read"]


def test_files_that_cannot_be_read_end_nothing(tmp_path: Path, tiny_base: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_library(folder, range(30))
    (folder / "dangling.md").symlink_to("/nowhere")
    (folder / "loop.md").symlink_to("loop.md")
    os.mkfifo(folder / "pipe.md")
    report = quickstarted(folder, tmp_path / "out", tiny_base)
    assert report["read"]["files_not_readable"] == 3
    assert quickstarted(folder, tmp_path / "out", tiny_base) == report


def test_a_folder_of_source_markdown_and_html_is_read_as_one(tmp_path: Path, tiny_base: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    write_library(folder, range(12))
    write_documents(folder, 12, 4)
    (folder / "page.html").write_text("<h1>A page</h1><h2>Of its own</h2><p>It says a thing.</p>")
    report = quickstarted(folder, tmp_path / "out", tiny_base)
    assert (report["read"]["files_code"], report["read"]["files_text"], report["read"]["files_html"]) == (
        12,
        12,
        1,
    )
    assert {"description", "heading"} <= set(report["questions"])
    (segment,) = (tmp_path / "out" / "index").glob("segment-*")
    locations = {row["location"].split(",")[0] for row in rows(segment / "documents.jsonl")}
    assert {"module_1.py", "document_1.md", "page.html"} <= locations


def test_stages_of_pairs_and_of_text_stand_in_one_recipe(
    library: Path, tmp_path: Path, tiny_base: Path
) -> None:
    """The recipe's objectives decide what is written, not the verb."""
    mix = {"sources": [{"path": "any.jsonl", "kind": "texts"}]}
    stages = [
        {"name": "mntp", "steps": 2, "batch_queries": 4, "warmup_steps": 0, "mix": mix}
        | {"objective": {"kind": "mntp", "mask_token": "eos", "chunk_tokens": 32}},
        {
            "name": "pairs",
            "steps": 2,
            "batch_queries": 4,
            "warmup_steps": 0,
            "mix": {"sources": [{"path": "a"}]},
        },
    ]
    values = {"name": "both", "stages": stages, "contract": {"max_tokens": 64, "default_instruction": ""}}
    values["training"] = {"precision": "float32"}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    report = adapted(
        library, tmp_path / "out", tiny_base, recipe_name=str(tmp_path / "both.yaml"), overrides=()
    )
    assert report["systems"] == [AS_IT_CAME, UNTRAINED, "after mntp", TRAINED]
    assert report["details"]["steps"] == {"mntp": 2, "pairs": 2}


def test_a_run_that_overran_says_where_the_time_went(
    library: Path, tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = quickstarted(library, tmp_path / "out", tiny_base, minutes=0.001)
    assert report["details"]["steps"] == {"retrieval": 5, "generalist": 5}, "the fewest, of six"
    (line,) = [line for line in report["notices"] if "The run took" in line]
    assert "train " in line
    assert line[:40] in capsys.readouterr().err


def test_recipes_that_measure_while_they_train_get_files_apart(
    library: Path, tmp_path: Path, tiny_base: Path
) -> None:
    measured = [*PAIR_STEPS, "training.eval_steps=3"]
    quickstarted(library, tmp_path / "out", tiny_base, overrides=measured)
    log = rows(tmp_path / "out" / "run" / "log.jsonl")
    assert [row["step"] for row in log if "eval_mrr@10" in row] == [3, 6, 3, 6]
    trained = {row["query"] for row in rows(tmp_path / "out" / "data" / "retrieval.jsonl")}
    assert 0 < len(trained) < len(rows(tmp_path / "out" / "data" / "train-pairs.jsonl"))


def test_the_report_holds_every_figure_of_every_system(finished: Path) -> None:
    report = read_json(finished / "report.json")
    assert report["systems"] == SYSTEMS
    assert report["questions"]["all"] == sum(report["questions"].values()) - report["questions"]["all"] > 10
    assert report["documents"] > report["questions"]["all"], "training text stands beside as distractors"
    ndcg = report["retrieval"]["all"]["ndcg@10"]
    assert list(ndcg["values"]) == ["BM25", *SYSTEMS, FUSED]
    assert ndcg["values"]["BM25"]["mean"] > 0.5, "the words are shared: BM25 must find them"
    for system, gain in ndcg["trained minus"].items():
        expected = ndcg["values"][TRAINED]["mean"] - ndcg["values"][system]["mean"]
        assert gain["difference"] == pytest.approx(expected)
    assert set(report["retrieval"]) >= {"all", "heading"}
    loss = report["mntp loss, nats a token"]
    assert list(loss["values"]) == SYSTEMS
    assert set(loss["after mntp minus"]) == set(SYSTEMS) - {"after mntp"}
    assert all(value["low"] < value["mean"] < value["high"] for value in loss["values"].values())
    for measure in ("alignment", "uniformity", "own half nearer"):
        assert list(report[measure]["values"]) == SYSTEMS
    assert report["read"]["files_text"] == 40
    assert report["details"]["steps"] == {"mntp": 5, "simcse": 5}


def test_the_page_says_what_was_gained_and_loads_nothing(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 5
    assert "http://" not in page.replace("http://www.w3.org", "")
    for text in ("Held-out MNTP loss", "BM25", "Alignment and uniformity", "stage simcse", "files text"):
        assert text in page


def test_the_plan_says_what_was_chosen_for_this_base(finished: Path, tiny_base: Path) -> None:
    recipe = read_json(finished / "prove.json")["recipe"]
    assert recipe["name"] == "llm2vec-unsup"
    assert recipe["model"]["base"] == str(tiny_base)
    assert recipe["model"]["adapter"]["targets"] == "all-linear"
    assert recipe["contract"]["chat_template"] == "{text}"
    assert recipe["stages"][0]["objective"]["mask_token"] == "_"


def test_the_result_is_a_merged_model_whose_index_can_be_searched(finished: Path) -> None:
    assert not any("lora" in name for name in weights_of(finished))
    st = embedforge.load(str(finished / "model"), device="cpu")
    hits = search(finished, "one thing and another", k=3, mode="dense", device="cpu")
    query = st.encode_query("one thing and another")
    for hit in hits:
        assert hit.document.location.startswith("document_")
        assert hit.score == pytest.approx(float(query @ st.encode_document(hit.document.text)), abs=0.02)


def test_training_changed_the_decoder(finished: Path, tiny_base: Path) -> None:
    before = load_file(str(tiny_base / "model.safetensors"))["model.layers.0.mlp.up_proj.weight"].numpy()
    after = next(
        value for name, value in weights_of(finished).items() if name.endswith("0.mlp.up_proj.weight")
    )
    assert not np.allclose(before, after, atol=1e-6)


def test_a_finished_run_only_shows_its_table_again(
    finished: Path, documents: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    report = adapted(documents, finished, tiny_base)
    assert report == read_json(finished / "report.json")
    said = capsys.readouterr().out
    assert "bidirectional" in said
    kept = report["kept"]
    assert kept["verdict"] in said
    assert kept["verdict"] in (finished / "report.html").read_text(encoding="utf-8")
    assert bool(kept["verdict"]) == (not kept["gained"])
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_other_settings_in_the_same_folder_are_refused(
    finished: Path, documents: Path, tiny_base: Path
) -> None:
    with pytest.raises(EmbedforgeError, match=r"seed was 0, is 1; choose another --out"):
        adapted(documents, finished, tiny_base, seed=1)
    with pytest.raises(EmbedforgeError, match=r"minutes was 60.0, is 5.0"):
        adapted(documents, finished, tiny_base, minutes=5.0)


def test_a_folder_with_other_files_is_left_alone(documents: Path, tmp_path: Path, tiny_base: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(EmbedforgeError, match="not empty and no adapt run"):
        adapted(documents, tmp_path, tiny_base)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


class CtrlC(TrainerCallback):
    """Presses Ctrl-C at a step of the first stage."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_leaves_a_state_from_which_the_same_model_comes(
    finished: Path, documents: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = documents, tmp_path / "out"
    original = train_run.StageTrainer

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        trainer = original(*args, **kwargs)
        trainer.add_callback(CtrlC())
        return trainer

    monkeypatch.setattr(train_run, "StageTrainer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        adapted(folder, out, tiny_base)
    assert not (out / "run" / "model").exists()
    monkeypatch.setattr(train_run, "StageTrainer", original)
    report = adapted(folder, out, tiny_base)
    expected = weights_of(finished)
    for name, value in weights_of(out).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert report["retrieval"] == read_json(finished / "report.json")["retrieval"]


def test_a_run_that_is_killed_again_and_again_goes_on_without_repeating_a_phase(
    finished: Path, documents: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    seen: list[object] = []
    original = phases.encode_held_out

    def noted(*args: Any, **kwargs: Any) -> Any:
        seen.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(phases, "encode_held_out", noted)
    for phase in ("measure", "train", "index_folder", "build_report"):
        with monkeypatch.context() as patch:
            patch.setattr(phases, phase, kill)
            with pytest.raises(Killed):
                adapted(documents, tmp_path / "out", tiny_base)
    report = adapted(documents, tmp_path / "out", tiny_base)
    assert len(seen) == len(SYSTEMS)
    assert not (tmp_path / "out" / "vectors").exists()
    assert report["alignment"] == read_json(finished / "report.json")["alignment"]


def test_a_base_without_a_head_is_refused_with_a_way_out_that_works(
    documents: Path, headless: Path, tmp_path: Path
) -> None:
    few = [change for change in FEW_STEPS if "mntp" not in change]
    with pytest.raises(EmbedforgeError, match="holds no language-model head") as refused:
        adapted(documents, tmp_path / "first", headless)
    assert "--recipe llm2vec-simcse" in str(refused.value)
    report = adapted(
        documents, tmp_path / "second", headless, recipe_name="llm2vec-simcse", overrides=few, minutes=60.0
    )
    assert report["systems"] == [AS_IT_CAME, UNTRAINED, TRAINED]
    assert report["mntp loss, nats a token"] is None
    assert "MNTP" not in (tmp_path / "second" / "report.html").read_text(encoding="utf-8")


def test_few_files_are_held_out_in_part(tmp_path: Path, tiny_base: Path) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    write_documents(folder, 3, 40)
    report = adapted(folder, tmp_path / "out", tiny_base)
    assert report["read"]["files_held_out_in_part"] == 3
    assert any("the last part of 3" in notice for notice in report["notices"])
    assert "the last part of 3" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_too_little_text_is_an_error_that_leaves_the_out_folder_free(
    documents: Path, tmp_path: Path, tiny_base: Path
) -> None:
    folder, out = tmp_path / "note", tmp_path / "out"
    folder.mkdir()
    write_documents(folder, 1, 2)
    with pytest.raises(EmbedforgeError, match="too little text"):
        adapted(folder, out, tiny_base)
    with pytest.raises(EmbedforgeError, match="there is no such folder"):
        adapted(tmp_path / "misspelt", out, tiny_base)


def test_a_base_is_pruned_before_anything_is_compared(library: Path, tiny_base: Path, tmp_path: Path) -> None:
    """The second start, with the plan and the pruned base there, only reads the report."""
    settings = {"recipe_name": "tiny", "overrides": [*PAIR_STEPS, "model.prune.layers=1"]}
    quickstarted(library, tmp_path / "out", tiny_base, **settings)
    config = read_json(tmp_path / "out" / "run" / "model" / "config.json")
    assert config["num_hidden_layers"] == 1
    assert read_json(tmp_path / "out" / "base" / "prune.json")["layers"] == [0]
    quickstarted(library, tmp_path / "out", tiny_base, **settings)
