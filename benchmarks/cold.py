"""Processor seconds of one command from the shell: help, a mistake, one query over an index.

    python benchmarks/cold.py

Each is started anew seven times; the median counts, and what it imports that is heavy is named.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import Timing, report

ROUNDS = 7
HEAVY = ("torch", "transformers", "sentence_transformers", "scipy", "numpy")


def run(words: list[str]) -> tuple[float, str]:
    """Processor seconds of a command, system time included, and the heavy modules that it imported."""
    code = (
        f"import sys\nsys.argv = {['embedforge', *words]!r}\nfrom embedforge.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('heavy:', *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, done.stderr.rpartition("heavy:")[2].strip() or "nothing"


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        texts = Path(work) / "texts"
        texts.mkdir()
        (texts / "a.txt").write_text("git reset moves the branch\n\nThe river is 30 m deep.")
        index = str(Path(work) / "index")
        subprocess.run([sys.executable, "-m", "embedforge", "index", str(texts), "--out", index], check=True)
        commands = {
            "--help": ["--help"],
            "search, one query": ["search", index, "how deep is the river?"],
            "search, no such index": ["search", str(texts), "river"],
            "encode, no such file": ["encode", str(Path(work) / "none.jsonl"), "--out", index + "-vectors"],
            "train, no such recipe": ["train", str(Path(work) / "none.yaml")],
        }
        timings, heavy = {name: Timing() for name in commands}, {}
        for _ in range(ROUNDS):
            for name, words in commands.items():
                seconds, heavy[name] = run(words)
                timings[name].seconds.append(seconds)
    rows = [
        {"command": name, "processor seconds": statistics.median(timing.seconds), "imports": heavy[name]}
        for name, timing in timings.items()
    ]
    report("cold", rows, timings)


if __name__ == "__main__":
    main()
