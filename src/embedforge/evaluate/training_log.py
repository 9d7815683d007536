"""The log of a training run as curves."""

from __future__ import annotations

import json
from pathlib import Path

Curve = tuple[list[float], list[float]]
"""Steps, and the loss at each."""


def losses_by_stage(log: Path) -> dict[str, dict[str, Curve]]:
    """Read a run's `log.jsonl`: stage -> source -> curve."""
    stages: dict[str, dict[str, Curve]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        for key, value in entry.items():
            if key.startswith("loss/"):
                steps, losses = stages.setdefault(entry["stage"], {}).setdefault(key[5:], ([], []))
                steps.append(entry["step"])
                losses.append(value)
    return stages
