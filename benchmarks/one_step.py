"""What is left of DiffuRec when its reverse process is cut to one step, by what is ranked after it.

    python benchmarks/one_step.py CHECKPOINT --data_path=DIR --code=DIR

RCCD (2026) reports half of the accuracy for it. After one of T steps two vectors can be ranked: the estimate of the
target x_0 that the network made of the noise, and the state x_{T-1}, most of which still is noise. With ``--code``, a
clone of the authors' https://github.com/WHUIR/DiffuRec, their inference is asked with the same weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import common
import torch
from authors_code import AuthorsCode
from torch import Tensor

from recbole_diffurec.diffusion.samplers import DDPMSampler, Denoise, Noise
from recbole_diffurec.experiments.audit_bench import Bench, Line, compare_lines, sample_users
from recbole_diffurec.models.diffurec import DiffuRecFamily
from recbole_diffurec.training.evaluate import open_members, opened


class FirstState(DDPMSampler):
    """The state after the first of all T steps, x_{T-1}, in the place of the last estimate."""

    def sample(self, x_T: Tensor, denoise: Denoise, noise: Noise) -> Tensor:
        """``Sampler.sample``, ended after one step."""
        last = len(self.sampled_steps) - 1
        return self.step(x_T, denoise(x_T, int(self.sampled_steps[last])), last, noise)


class FirstMean(FirstState):
    """The same without the noise that the step adds."""

    def step(self, x_s: Tensor, x_0: Tensor, index: int, noise: Noise) -> Tensor:
        """``Sampler.step``, its mean."""
        return super().step(x_s, x_0, index, lambda t: x_0.new_zeros(()))


def forms(network: DiffuRecFamily) -> list[Line]:
    """What is compared; the published reverse process stands first."""
    total = network.n_steps

    def ended_by(sampler: type[FirstState]) -> Any:
        other = network.sharing_weights()
        other.sampler = sampler(network.sampler.betas).to(network.item_embedding.weight.device)
        return other.full_sort_predict

    return [
        Line("all_steps", f"{total} steps", lambda: network.with_sampling_steps(total).full_sort_predict),
        Line("one_step", "1 step, its estimate", lambda: network.with_sampling_steps(1).full_sort_predict),
        Line("factor_0", "1 step, lambda = 0", lambda: network.without_noised_target().full_sort_predict),
        Line("state", "the state x_{T-1} after 1 step", lambda: ended_by(FirstState)),
        Line("state_mean", "the same without its noise", lambda: ended_by(FirstMean)),
    ]


def forms_of_the_authors(code: AuthorsCode) -> list[Line]:
    """The same by the code of the paper's authors, which draws other noise."""
    return [
        Line("authors_all_steps", "the authors' code, all steps", lambda: code.scores(code.all_steps)),
        Line("rccd", "the same, 1 step as RCCD takes it", lambda: code.scores(code.first_estimate)),
        Line("authors_one_step", "the same, told of 1 step", lambda: code.scores(code.one_step)),
        Line("authors_state", "the same, left after its first step", lambda: code.scores(code.first_state)),
    ]


def page(lines: list[dict[str, Any]], about: str) -> str:
    rows = []
    for line in lines:
        of = line.get("difference", {}).get("ndcg")
        change = f"{of['mean']:+.4f} [{of['low']:+.4f}, {of['high']:+.4f}]" if of else ""
        ratio = f"{line['ndcg'] / line['hit']:.2f}" if line["hit"] else ""
        rows.append(
            (line["label"], f"{line['hit']:.4f}", f"{line['ndcg']:.4f}", ratio, f"{line['overlap']:.1%}", change)
        )
    header = ("ranked", "HR@10", "NDCG@10", "NDCG / HR", "lists shared", "change of NDCG@10 [95 %]")
    return f"{about}\n\n{common.table(header, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="of a training of DiffuRec or DiffuRecSys")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--users", type=int, help="test users, drawn with seed 2020; all if left out")
    parser.add_argument("--code", type=Path, help="a clone of the authors' code; left out if there is none")
    parser.add_argument("--name", default="DiffuRec", help="of the training, for the page")
    given = parser.parse_args()
    parameters = {"data_path": given.data_path}
    with opened(open_members([given.checkpoint], parameters), parameters) as found:
        (network, trainer), config = found.built[0], found.members[0].config
        loader, _ = sample_users(found.data.loaders[2], config["USER_ID_FIELD"], given.users, 2020)
        bench = Bench(trainer, loader, 10)
        asked = forms(network.eval())
        if given.code is not None:
            torch.manual_seed(config["seed"])
            asked += forms_of_the_authors(AuthorsCode(given.code, network, config))
        lines = compare_lines(*bench.measure_lines(asked))
        users, dataset, masked = int(bench.user_of_row.max()) + 1, config["dataset"], config["mask_seen"]
    about = (
        f"{given.name} on {dataset}, {users:,} test users, all items ranked, "
        f"{'those of the history' if masked else 'none'} masked. "
        f"Changes and shared lists are against {lines[0]['label']}."
    )
    common.publish(
        "one_step", "One reverse step", {"name": given.name, "users": users, "lines": lines}, page(lines, about)
    )


if __name__ == "__main__":
    main()
