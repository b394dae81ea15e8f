"""What the diffusion contributes to each diffusion model that trainings.py has trained: their audits as one page.

    python benchmarks/audits.py --data_path=DIR --dataset=amazon-beauty --work=trainings

Each audit is ``recbole-diffurec audit`` of the checkpoint that trainings.py left in its ``--work`` folder, and a file
of ``results/audits/DATASET``, which is not made again. The page and its picture are made of all files that are there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import common
import matplotlib.pyplot as plt
import trainings

from recbole_diffurec.experiments.looks import write_figure
from recbole_diffurec.host import catalogue
from recbole_diffurec.models.base import DiffusionRecommender

STORE = common.RESULTS / "audits"
# Lines of an audit that take something of the diffusion away, by the columns that the page gives them.
LINES = {
    "factor_0": "without the noised vector",
    "other_noise": "it replaced by noise",
    "frozen_step": "step embedding frozen",
    "one_step": "one step",
    "twin": "trained without it",
    "mc_dropout": "MC dropout instead",
    "mean_of_samples": "mean of the samples",
}
Audits = dict[str, dict[str, Any]]  # by the names of the trainings


def audit(training: trainings.Training, options: argparse.Namespace) -> bool:
    """Whether there is an audit of a training now."""
    kept = _path(training)
    if kept.is_file():
        return True
    folder = options.work / training.dataset / training.path.stem
    if not (folder / "run.json").is_file():
        print(f"{training.name}: no checkpoint in '{folder}'", file=sys.stderr)
        return False
    checkpoint = json.loads((folder / "run.json").read_text())["checkpoint"]
    command = [sys.executable, "-m", "recbole_diffurec", "audit", checkpoint, f"--data_path={options.data_path}"]
    command += [
        f"--users={options.users}",
        f"--output_dir={folder / 'audit'}",
        f"--result_file={folder / 'audit.json'}",
    ]
    command += ["--train_twin"] if options.train_twin else []
    if subprocess.run(command, check=False).returncode:
        return False
    found = json.loads((folder / "audit.json").read_text())
    about = {name: found[name] for name in ("model", "users", "test_users", "sample_seed", "protocol", "versions")}
    measured = {name: found[name] for name in ("lines", "seeds", "uncertainty", "verdict")}
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(
        json.dumps({"name": training.name, **about, **measured, "machine": common.machine()}, indent=1) + "\n"
    )
    return True


def _path(training: trainings.Training) -> Path:
    return STORE / training.dataset / f"{training.path.stem}.json"


def _measured(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The lines of an audit that are applicable to its model, by name."""
    return {line["name"]: line for line in found["lines"] if "ndcg" in line}


def _change(line: dict[str, Any] | None) -> str:
    if line is None or "difference" not in line:
        return ""
    of = line["difference"]["ndcg"]
    return f"{of['mean']:+.4f} [{of['low']:+.4f}, {of['high']:+.4f}]"


def page(audits: Audits, dataset: str) -> str:
    rows, samples, verdicts, steps = [], [], [], []
    for name, found in audits.items():
        lines = _measured(found)
        rows.append((name, f"{lines['as_trained']['ndcg']:.4f}", *(_change(lines.get(line)) for line in LINES)))
        rho, seeds = found["uncertainty"]["spread_and_rank"], found["seeds"]
        of = found["uncertainty"]
        samples.append(
            (
                name, f"{seeds['overlap']:.1%}", f"{seeds['spread_mean']:.1%}", f"{rho['rho']:+.2f} ({rho['p']:.2g})",
                *(f"{of[kind]['calibration_error']:.3f}" for kind in ("frequencies", "one_sample", "mean_of_samples")),
            )
        )  # fmt: skip
        taken = [line for name, line in lines.items() if name.startswith(("ddpm_", "ddim_", "one_step"))]
        cells = ", ".join(f"{line['label']}: {line['ndcg']:.4f} ({line['ms_per_user']:.2g} ms)" for line in taken)
        where = f"{found['machine']['processor']}, {found['machine']['date']}"
        steps.append(f"- **{name}** ({where}): {cells}.")
        verdicts.append(f"- **{name}**: {found['verdict']['sentence']}")
    users = sorted({found["users"] for found in audits.values()})
    return "\n\n".join(
        [
            f"{dataset}, {' or '.join(f'{n:,}' for n in users)} test users, all items ranked. NDCG@10, and how it "
            "changes, with the 95 % interval over users. The same users for every model, by one draw; what the models "
            "reach over all of them is in RESULTS.md.",
            common.table(("model", "as trained", *LINES.values()), rows),
            f"![audits](audits_{dataset}.png)",
            "Verdicts, by the rule that each audit states, about the ranking of the next item. MaskedDiffRec makes it "
            "in one pass; what its steps are worth for several items together is asked by `joint.py`.",
            "\n".join(verdicts),
            "Samples under different noise: how many of the top 10 items two of them share, how far they lie from "
            "their mean, whether those of users whose target ranks low lie farther apart (Spearman's rho, p), and "
            "errors of calibration.",
            common.table(
                ("model", "shared", "spread", "spread and rank", "frequencies", "softmax of one", "of their mean"),
                samples,
            ),
            "NDCG@10 and milliseconds for each user, by reverse steps:",
            "\n".join(steps),
        ]
    )


def draw(audits: Audits, stem: Path) -> None:
    columns, rows = min(4, len(audits)), -(-len(audits) // 4)
    size = (1.8 + 2.4 * columns, 0.4 + 2.7 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis in axes.flat[len(audits) :]:
        axis.axis("off")
    for axis, (name, found) in zip(axes.flat, audits.items()):
        lines = _measured(found)
        for place, line in enumerate(reversed(LINES)):
            if "difference" in lines.get(line, {}):
                of = lines[line]["difference"]["ndcg"]
                axis.errorbar(
                    of["mean"], place, xerr=[[of["mean"] - of["low"]], [of["high"] - of["mean"]]], fmt="o", color="C0"
                )
        axis.axvline(0, color="gray", linewidth=0.8)
        axis.set_title(
            f"{name.replace('`', '').replace(', ', chr(10), 1)}\n{lines['as_trained']['ndcg']:.4f}", fontsize=9
        )
        axis.tick_params(labelsize=7)
        axis.locator_params(axis="x", nbins=4)
    axes[0, 0].set_yticks(range(len(LINES)), list(reversed(LINES.values())))
    figure.supxlabel("change of NDCG@10", fontsize=8)
    write_figure(figure, stem)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="amazon-beauty")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--work", type=Path, default=Path("trainings"), help="the folder of trainings.py")
    parser.add_argument("--users", type=int, default=5000)
    parser.add_argument("--only", nargs="+", help="audit these rows of the plan; the page is of all that are kept")
    parser.add_argument("--train_twin", action="store_true", help="train each model's twin, which takes as long again")
    options = parser.parse_args()
    audits: Audits = {}
    for training in trainings.plan(options.dataset):
        first = training.name not in audits and training.path.is_file()
        diffuses = issubclass(catalogue.find(training.model).model_class, DiffusionRecommender)
        asked = training.name in (options.only or [training.name]) or _path(training).is_file()
        if first and diffuses and asked and audit(training, options):
            audits[training.name] = json.loads(_path(training).read_text())
    if not audits:
        print("nothing is trained that can be audited: run benchmarks/trainings.py", file=sys.stderr)
        return 1
    name = f"audits_{options.dataset}"
    draw(audits, common.RESULTS / name)
    (common.RESULTS / f"{name}.svg").unlink()
    common.publish(
        name, "What the diffusion contributes", {"audits": list(audits)}, page(audits, options.dataset), "audits"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
