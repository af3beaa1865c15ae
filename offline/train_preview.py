"""What `pika train --dry-run` prints."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offline.material import Plan
from offline.training_set import SPLITS, TrainingSet


def preview(data: TrainingSet, plan: Plan, device: str, cache: Path, out: Path) -> None:
    """What would be read, and what that takes, for people on stderr; a line of JSON on stdout.

    Raises:
        ProbeError: the probe model cannot be loaded.
    """
    problems = {split: int(data.rows(split).sum()) for split in SPLITS}
    counts = ", ".join(f"{n:,} {split}" for split, n in problems.items())
    arms = [arm.name for arm in data.arms]
    print(f"{counts} problems; a probe each for {', '.join(arms)}, in {out}", file=sys.stderr)
    reads = _reads(plan, device, cache)
    if reads is None:
        print("no activations: these probes read text or its length", file=sys.stderr)
    else:
        what = f"{reads['prompts']:,} prompts of {reads['tokens']:,} tokens, {reads['gb']:.3g} GB in {cache}"
        when = "there already" if reads["cached"] else f"to be read in about {reads['seconds']:.0f} s"
        print(f"activations: {what}, {when}", file=sys.stderr)
    print(json.dumps({"dry_run": True, "out": str(out), "arms": arms, "problems": problems, "activations": reads}))


def _reads(plan: Plan, device: str, cache: Path) -> Mapping[str, Any] | None:
    """None where no activations are read."""
    if plan.reading is None or plan.material.renderer is None:
        return None
    from offline.activations import GB, forecast  # torch: text probes need none

    found = forecast(plan.material.renderer.pass_, plan.prompts, plan.reading, device, cache)
    return {
        "prompts": len(plan.prompts),
        "tokens": sum(map(len, plan.prompts)),
        **plan.material.tried,
        "next_token": plan.reading.next_token,
        "gb": found.bytes / GB,
        "seconds": found.seconds,
        "cached": found.cached,
        "cache": str(cache),
    }
