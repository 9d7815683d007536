"""Export a real decoder to every form, in docs/export.md: how close each is, and how large.

    python scripts/export_table.py --out runs/export

The model is --base, untrained, pooled at its last token, of at most 128 tokens a text. Each form is written
and run by `embedforge export`, with any cosine accepted, so that all have figures; one that is refused all
the same (8 bits that are no faster) stands there with the reason. Run again to go on where it stopped; a
table stands between two comments of --page, and only what is between them is replaced.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import random
from pathlib import Path
from typing import Any

from make_results import machine, replace_section

from embedforge.errors import EmbedforgeError
from embedforge.export.run import MARKER, export_to
from embedforge.files import read_json, write_json, write_text
from embedforge.model.encoder import build, save
from embedforge.text.contract import Contract

FORMS = [(form, int8) for form in ("onnx", "openvino", "gguf") for int8 in (False, True)]
PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "nncf", "xllamacpp")
WORDS = (1, 3, 8, 20, 60)
"""Words of a text, in turn."""


def main() -> None:
    """Write what is missing in --out, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model and its exports")
    parser.add_argument("--base", default="smollm2-135m", help="a decoder of a family that all forms hold")
    parser.add_argument("--texts", type=int, default=40, help="texts of the check, beside the goldens")
    parser.add_argument("--page", type=Path, default=Path("docs/export.md"))
    args = parser.parse_args()
    model = args.out / "model"
    if not model.exists():
        contract = Contract(max_tokens=128, pooling="last", attention="causal")
        save(build(base=args.base, contract=contract), model)
    write_texts(args.out / "texts.txt", args.texts)
    rows = [exported(args.out, form, int8) for form, int8 in FORMS]
    replace_section(args.page, "forms", page_table(args.base, rows))


def write_texts(file: Path, count: int) -> None:
    """Write prose of Python's documentation, a text a line."""
    from pydoc_data.topics import topics

    words, draw = " ".join(topics[name] for name in sorted(topics)).split(), random.Random(1)
    starts = [draw.randrange(len(words) - max(WORDS)) for _ in range(count)]
    texts = [" ".join(words[start : start + WORDS[row % len(WORDS)]]) for row, start in enumerate(starts)]
    write_text(file, "\n".join(texts) + "\n")


def exported(out: Path, form: str, int8: bool) -> dict[str, Any]:
    """Export to a form, unless that was done; return its figures, or why there are none."""
    name = f"{form}-int8" if int8 else form
    folder, facts = out / name, out / f"{name}.json"
    if facts.exists():
        return dict(read_json(facts))
    try:
        export_to(str(out / "model"), folder, form, int8=int8, texts=out / "texts.txt", min_cosine=-1)
        check = read_json(folder / MARKER)["check"]
        size = sum(file.stat().st_size for file in folder.iterdir() if file.name.startswith("model."))
        found = {"bytes": size, "texts": check["texts"], "row": check["rows"][-1]}
    except EmbedforgeError as error:
        found = {"refused": str(error)}
    write_json(facts, found)
    return found


def page_table(base: str, rows: list[dict[str, Any]]) -> str:
    """Return the table, and the machine it was made on."""
    lines = ["| form | MB | cosine, min | cosine, mean | token ids equal |", "|---|---|---|---|---|"]
    for (form, int8), found in zip(FORMS, rows, strict=True):
        name = f"`--to {form}{' --int8' if int8 else ''}`"
        if "refused" in found:
            lines.append(f"| {name} | refused: {found['refused'].split(';')[0]} | | | |")
            continue
        row = found["row"]
        lines.append(
            f"| {name} | {found['bytes'] / 1e6:,.0f} | {row['cosine_min']:.5f} | {row['cosine_mean']:.5f} | "
            f"{row['tokens_equal']} of {found['texts']} |"
        )
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return "\n".join([*lines, "", f"{base}, untrained, last token, causal. {machine(versions)}"])


if __name__ == "__main__":
    main()
