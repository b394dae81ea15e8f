"""All commands with random arguments, damaged inputs and odd surroundings: they work, or say in one sentence why not.

Each try is a process of its own, forked from this one so that torch is imported once, with limits of time and memory.
``FUZZ_TRIES`` is the number of tries and ``FUZZ_SEED`` the first one's seed, so that many tries are run in portions; a
failure names its seed. ``FUZZ_SECONDS`` ends them sooner.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import stat
import time
from collections import Counter
from pathlib import Path

import pytest
from fuzzing import AT_WORK, IDLE, Ended, carry_out, damage, make_inputs
from fuzzing_words import ENVIRONMENTS, command_line

from recbole_diffurec.cli.parsers import PARSERS

TRIES, SEED = int(os.environ.get("FUZZ_TRIES", "300")), int(os.environ.get("FUZZ_SEED", "0"))
ANEW = 0.02  # the share of tries that begin anew, a process that imports everything
INTERRUPTED = {128 + signal.SIGINT}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs") / "work")


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files."""
    found = (path for path in folder.rglob("*") if stat.S_ISREG(path.lstat().st_mode))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def _wanted(folder: Path, words: list[str], draw: random.Random) -> Path:
    """A file to damage, which the command most likely reads."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    text = " ".join(words)
    parts = {"compare": "comparison/runs", "tune": "tuning", "run": "saved" if "--resume" in words else "data/small"}
    read = [path for path in paths if path.name in text or f"{parts.get(words[0], 'data/small')}/" in str(path)]
    return draw.choice(read if read and draw.random() < 0.8 else paths)


def lost(before: dict[str, str], after: dict[str, str], words: list[str], damaged: str | None) -> list[str]:
    """What was there, is not as it was, and was not to be changed by such a command."""
    of_output = ("--output=", "--result_file=")
    outputs = {word.partition("=")[2] for word in words if word.startswith(of_output)}
    if words[0] == "export":  # the item ids stand beside its output
        outputs |= {f"{name}.json" for name in outputs}
    read = {word.rpartition("=")[2] for word in words if not word.startswith(of_output)}
    changeable = {name for name in outputs - read if not name.endswith((".pth", ".state"))}
    kept = set(before) - changeable
    begins = {"audit": ("audit/",)}.get(words[0], ())
    if words[0] == "compare":  # its tables; and a run that is damaged is run again
        again = f"comparison/runs/{Path(damaged).stem}." if damaged else "comparison/runs/none"
        kept -= {name for name in kept if name.startswith("comparison/") and not name.startswith("comparison/runs/")}
        begins = (again,)
    if "--resume" in words:
        begins = {"run": ("saved/",), "tune": ("tuning/",)}.get(words[0], ())
    if "--overwrite" in words:
        begins = ("data/", *begins)
    return sorted(n for n in kept if not (begins and n.startswith(begins)) and after.get(n) != before[n])


def wrong_with(ended: Ended, words: list[str]) -> list[str]:
    """What a command may not do, whatever it is given."""
    code, said, wrong = ended.code, ended.said, []
    ends_early = ended.interrupted or words[0] == "tune"  # whose stand-in tries three configurations at most
    allowed = {0, 2} | (INTERRUPTED if ends_early else set()) | ({1} if words[0] == "compare" else set())
    if code not in allowed:
        wrong.append(f"exit code {code}")
    if "Traceback (most recent call last)" in said or "Exception ignored" in said:
        wrong.append("a traceback")
    if "a mistake of ours" in said:
        wrong.append("a mistake of ours")
    if code == 2 and "recbole-diffurec: " not in said:
        wrong.append("not a word")
    if ended.interrupted and ended.work < IDLE and not AT_WORK.search(said):
        wrong.append(f"{ended.seconds:.0f} s of waiting")
    return wrong


def attempt(seed: int, inputs: Path, place: Path) -> tuple[str, str]:
    """One try: its outcome, and what is wrong with it or nothing."""
    draw = random.Random(seed)
    folder = place / "work"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(inputs, folder)
    words = command_line(draw, folder)
    damaged = _wanted(folder, words, draw) if draw.random() < 0.5 else None
    how = damage(draw, damaged) if damaged is not None else "nothing"
    name = None if damaged is None else str(damaged.relative_to(folder))
    environment, anew = draw.choice(ENVIRONMENTS), draw.random() < ANEW
    before, beside = contents(folder), {*(path.name for path in place.iterdir()), "said"}
    anew, figures = anew and words[0] not in ("compare", "tune"), draw.random() < 0.2
    ended = carry_out(words, folder, environment, anew=anew, figures=figures)
    after = contents(folder)
    wrong = wrong_with(ended, words)
    if missing := lost(before, after, words, name):
        wrong.append(f"{missing} changed")
    if parts := sorted(path for path in after if path.endswith(".part")):
        wrong.append(f"{parts} left behind")
    if {*(path.name for path in place.iterdir()), "said"} != beside:
        wrong.append("something lies outside")
    if not wrong:
        return f"{words[0]} {ended.code}", ""
    tail = "\n".join(ended.said.splitlines()[-14:])
    context = {"words": words, "damaged": name, "how": how, "environment": environment, "anew": anew}
    return f"{words[0]} failed", f"seed {seed}: {', '.join(wrong)}\n{json.dumps(context, ensure_ascii=False)}\n{tail}\n"


def test_every_command_is_tried(tmp_path: Path) -> None:
    drawn = [command_line(random.Random(seed), tmp_path)[0] for seed in range(300)]
    assert set(drawn) == set(PARSERS)


@pytest.mark.slow
def test_all_commands(inputs: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    outcomes: Counter[str] = Counter()
    failures = []
    started = time.monotonic()
    until = started + float(os.environ.get("FUZZ_SECONDS", "inf"))
    for seed in range(SEED, SEED + TRIES):
        if time.monotonic() > until:
            break
        outcome, wrong = attempt(seed, inputs, place)
        outcomes[outcome] += 1
        failures += [wrong] if wrong else []
        if wrong:
            print(wrong, flush=True)
        if sum(outcomes.values()) % 100 == 0:
            print(f"... seed {seed}", flush=True)
    minutes = (time.monotonic() - started) / 60
    tries = sum(outcomes.values())
    print(
        f"{tries} tries, seeds {SEED} to {SEED + tries - 1}, {tries / minutes:.0f} a minute, {len(failures)} failures"
    )
    print(dict(sorted(outcomes.items())))
    assert not failures, "\n".join(failures)
