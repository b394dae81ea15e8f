"""Whether the same histories get the same lists everywhere: Python, command line, HTTP service, ONNX program.

Each is used as its user would: the command line and the service in processes of their own, the program in onnxruntime
with the item ids of the file beside it. The histories are those of training users and some that nobody has.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import common
import numpy as np
import onnxruntime
import pandas as pd
import requests
import torch

from recbole_diffurec import Recommender
from recbole_diffurec.training.prepare import training_histories

K = 20
COMMAND = [sys.executable, "-m", "recbole_diffurec"]
Lists = tuple[np.ndarray, np.ndarray]  # item ids and scores, [users, K]


def lists(table: pd.DataFrame) -> Lists:
    return (
        table["item_id"].to_numpy(str).reshape(-1, K),
        table["score"].to_numpy(float).reshape(-1, K),
    )


def from_command_line(checkpoint: str, histories: list[list[str]], steps: int, folder: Path) -> Lists:
    source, target = folder / "histories.jsonl", folder / "lists.csv"
    source.write_text(
        "".join(json.dumps({"user_id": str(i), "items": items}) + "\n" for i, items in enumerate(histories))
    )
    arguments = ["recommend", checkpoint, f"--input={source}", f"--output={target}", f"--k={K}"]
    subprocess.run([*COMMAND, *arguments, f"--sampling_steps={steps}"], check=True, cwd=common.ROOT)
    return lists(pd.read_csv(target, dtype={"item_id": str}))


def from_service(checkpoint: str, histories: list[list[str]], steps: int) -> Lists:
    command = [*COMMAND, "serve", checkpoint, "--port=0", f"--sampling_steps={steps}"]
    service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=common.ROOT)
    assert service.stdout is not None
    try:
        address = service.stdout.readline().split()[1].rstrip("/")
        answers = []
        for start in range(0, len(histories), 100):
            body = {"histories": histories[start : start + 100], "k": K}
            answer = requests.post(f"{address}/recommend", json=body, timeout=60)
            answer.raise_for_status()
            answers += answer.json()["lists"]
    finally:
        service.terminate()
        service.wait()
    items = [[item["item_id"] for item in one["items"]] for one in answers]
    return np.array(items), np.array([[item["score"] for item in one["items"]] for one in answers])


def from_program(checkpoint: str, histories: list[list[str]], steps: int, folder: Path) -> Lists:
    program = folder / "model.onnx"
    arguments = ["export", checkpoint, "--format=onnx", f"--output={program}", f"--sampling_steps={steps}"]
    subprocess.run([*COMMAND, *arguments], check=True, cwd=common.ROOT)
    about = json.loads(Path(f"{program}.json").read_text())
    ids = np.array(about["items"])
    number = {item: i for i, item in enumerate(ids)}
    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    network = Recommender.load(checkpoint, sampling_steps=steps, gpu_id="").network
    found = []
    for start in range(0, len(histories), 200):
        part = [history[-about["max_length"] :] for history in histories[start : start + 200]]
        item_seq = torch.zeros(len(part), max(2, *map(len, part)), dtype=torch.int64)
        for row, history in zip(item_seq, part):
            row[: len(history)] = torch.tensor([number[item] for item in history])
        with torch.no_grad():
            inputs = network.program().draws(item_seq)
        (scores,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        best = np.argsort(-scores, axis=1, kind="stable")[:, :K]
        found.append((ids[best], np.take_along_axis(scores, best, axis=1)))
    return np.concatenate([items for items, _ in found]), np.concatenate([scores for _, scores in found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("--users", type=int, default=1000, help="histories of training users")
    parser.add_argument("--invented", type=int, default=200, help="histories of items drawn at random")
    parser.add_argument("--sampling_steps", type=int, default=4)
    given = parser.parse_args()
    checkpoint, steps = str(Path(given.checkpoint).resolve()), given.sampling_steps
    recommender = Recommender.load(checkpoint, sampling_steps=steps, gpu_id="")
    _, histories = next(training_histories(recommender.config))
    rng = np.random.default_rng(0)
    invented = [rng.choice(recommender.items[1:], n).tolist() for n in rng.integers(1, 60, given.invented)]
    histories = [list(map(str, history)) for history in histories[: given.users]] + invented

    ours, scores = lists(recommender.recommend(histories, k=K))
    rows, figures = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        others = {
            "command line": from_command_line(checkpoint, histories, steps, folder),
            "HTTP service": from_service(checkpoint, histories, steps),
            "ONNX program": from_program(checkpoint, histories, steps, folder),
        }
    for other, (items, their_scores) in others.items():
        equal = float((items == ours).all(axis=1).mean())
        difference = float(np.abs(their_scores - scores).max() / np.abs(scores).max())
        figures[other] = {"equal_lists": equal, "largest_score_difference": difference}
        rows.append([other, f"{equal:.2%}", f"{difference:.1e}"])
    text = (
        f"{recommender.config['model']} on {recommender.config['dataset']}, {steps} reverse steps, k = {K}: the lists "
        f"of {len(histories):,} histories, {given.invented} of them invented, against Python's "
        f"`Recommender.recommend`. Score differences are relative to the largest score.\n\n"
        f"{common.table(['from', 'equal lists', 'largest score difference'], rows)}"
    )
    common.publish("agreement", "The same lists everywhere", {"users": len(histories), "figures": figures}, text)


if __name__ == "__main__":
    main()
