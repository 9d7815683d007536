"""One model on one task in mteb: data, scores and predictions. Needs mteb."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mteb

from embedforge.errors import EmbedforgeError
from embedforge.files import read_json


def run_with_mteb(model: Any, task: Any) -> tuple[Any, dict[str, Any]]:
    """Score a model on a task.

    Args:
        model: encoder or search of mteb's protocols.
        task: of a folder or of mteb; its data stay loaded.

    Returns:
        mteb's result, and the predictions that it saved ({} where it saves none).

    Raises:
        EmbedforgeError: the task's data are bad, or cannot be had.
    """
    is_aggregate = getattr(task, "is_aggregate", False)  # mteb loads its parts one by one, while it runs
    if not is_aggregate:
        with _explained(task, Exception):
            task.load_data()
    # mteb draws bars of its own for bitext, which no option turns off; they would tear ours.
    with tempfile.TemporaryDirectory() as predictions, contextlib.redirect_stderr(io.StringIO()):
        with _explained(task, OSError) if is_aggregate else contextlib.nullcontext():
            (result,) = mteb.evaluate(
                model,
                task,
                cache=None,
                co2_tracker=False,
                show_progress_bar=False,
                encode_kwargs={"batch_size": 256, "show_progress_bar": False},
                prediction_folder=Path(predictions),
            ).task_results
        file = Path(predictions) / getattr(task, "prediction_file_name", "")
        return result, read_json(file) if file.is_file() else {}


@contextlib.contextmanager
def _explained(task: Any, kind: type[Exception]) -> Iterator[None]:
    """Turn an error of `kind` in fetching a hub task's data into one message with the ways out.

    The layers below (HTTP client, hub, datasets, mteb) each have errors of their own.
    """
    try:
        yield
    except EmbedforgeError:
        raise
    except kind as error:
        if hasattr(task, "folder"):  # nothing of it comes from the hub
            raise
        name = task.metadata.name
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EmbedforgeError(
            f"task {name}: its dataset cannot be had from the hub: {reason:.300}\n"
            "Finished tasks are kept: once the hub can be reached, the same command goes on with the others. "
            f"Or leave {name} out of --tasks. Without a network, put data into a folder as TYPE/DATASET/ and "
            "name it: --tasks FOLDER (docs/evaluation.md, 'Datasets in a folder')"
        ) from error
