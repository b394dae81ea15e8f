"""Conformance of a model, in the manner of scikit-learn's ``check_estimator``: what users of any model may rely on.

``check_model("NAME")`` trains the model for an epoch or two on a small data set that it makes itself, in a temporary
folder, and checks on the way that

- padding has no influence, and order and size of the batch have none;
- ``predict`` gives the scores of ``full_sort_predict``;
- batches without trailing padding give the same loss, where the model says so (``trims_padding``);
- all positions of a history give the loss of its prefixes, where the model says so (``all_positions``);
- the same seed gives the same figures, and an interrupted training goes on to the same end;
- a checkpoint gives the figures and the lists of the run that wrote it;
- ``recommend`` and each format of ``export`` work, or are refused with the reason that the model's spec states.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from recbole.utils import init_seed

from recbole_diffurec.data.rows import FIRST_TARGET
from recbole_diffurec.errors import UserError
from recbole_diffurec.host import catalogue
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.loaders import dataset_of, training_batch
from recbole_diffurec.inference.export import export
from recbole_diffurec.inference.recommender import Recommender
from recbole_diffurec.models.base import DiffusionRecommender, Exportable
from recbole_diffurec.models.spec import ModelSpec
from recbole_diffurec.runtime import checkpoint
from recbole_diffurec.training.evaluate import evaluate
from recbole_diffurec.training.prepare import PreparedData, build, prepare_data
from recbole_diffurec.training.run import run
from recbole_diffurec.training.trainer import PluginTrainer

DATASET, LONGEST = "conformance", 10
# Small, and with which every model of RecBole is content; a model gets those of them that it has.
SMALL: dict[str, Any] = {
    "epochs": 2,
    "hidden_size": 8,
    "embedding_size": 8,
    "inner_size": 16,
    "n_layers": 1,
    "n_heads": 2,
    "num_layers": 1,
    "MAX_ITEM_LIST_LENGTH": LONGEST,
    "train_batch_size": 64,
    "eval_batch_size": 32,
    "diffusion_steps": 4,
    "sampling_steps": None,
    "topk": [3, 5],
    "valid_metric": "NDCG@5",
    "gpu_id": "",
    "show_progress": False,
}
# What the order of sums may change.
FLOAT64: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-8}
FLOAT32: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}


def check_model(name: str, parameters: Mapping[str, Any] | None = None, exports: tuple[str, ...] = ()) -> None:
    """Raise ``AssertionError``, with what failed, unless a model keeps what users may rely on.

    Parameters
    ----------
    name : str
        A registered model, or one of RecBole's.
    parameters : Mapping of str to object
        What to change of ``SMALL``, such as ``{"dropout_prob": 0.0}``.
    exports : tuple of str
        The formats of ``export`` to check; by default those whose libraries take seconds, safetensors and faiss.
    """
    check = _Check(catalogue.find(name), dict(parameters or {}))
    with check.workplace():
        result = check.run_twice()
        check.resume(result)
        check.evaluate(result)
        check.network()
        check.recommend(result)
        for kind in exports or ("safetensors", "faiss"):
            check.export(result, kind)


class _Stopped(BaseException):
    """As sudden as a kill: nothing of ours catches it."""


class _Check:
    def __init__(self, spec: ModelSpec, parameters: dict[str, Any]):
        from recbole_diffurec.host.config import known_parameters

        self.spec = spec
        known = known_parameters(spec.name)
        self.parameters = {name: value for name, value in SMALL.items() if name in known} | parameters
        self.parameters["data_path"] = "data"

    @contextlib.contextmanager
    def workplace(self) -> Iterator[None]:
        """A temporary working folder with the data set: users who walk round 24 items, with detours."""
        before = os.getcwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                random_walk = random.Random(7)
                lines = ["user_id:token\titem_id:token\ttimestamp:float"]
                for user in range(40):
                    start = random_walk.randrange(24)
                    for place in range(random_walk.randrange(6, 12)):
                        item = (start + place + (random_walk.random() < 0.2)) % 24
                        lines.append(f"u{user}\ti{item}\t{1_500_000_000 + 86_400 * place + user}")
                data = Path("data") / DATASET
                data.mkdir(parents=True)
                (data / f"{DATASET}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
                yield
            finally:
                os.chdir(before)

    # Runs

    def run(self, **changed: Any) -> dict[str, Any]:
        return run(self.spec.name, DATASET, **{**self.parameters, **changed})

    def run_twice(self) -> dict[str, Any]:
        first, second = self.run(), self.run()
        assert _figures(first) == _figures(second), f"{self.spec.name}: the same seed gave other figures"
        for epoch in first["history"]:
            loss = epoch["train_loss"]
            assert _finite(loss), f"{self.spec.name}: the loss of epoch {epoch['epoch'] + 1} is {loss}"
        return first

    def resume(self, result: Mapping[str, Any]) -> None:
        if "resume" in self.spec.cannot:
            _refused(self.spec, "resume", lambda: self.run(resume=True))
            return
        with _stopped_in_epoch(1):
            try:
                self.run(checkpoint_dir="stopped", checkpoint_minutes=0)
            except _Stopped:
                pass
            else:
                return  # a trainer of its own kind, without batches to stop between: it keeps no state
        resumed = self.run(checkpoint_dir="stopped", checkpoint_minutes=0, resume=True)
        assert _figures(resumed) == _figures(result), f"{self.spec.name}: a resumed training ended elsewhere"
        own, expected = (checkpoint.load(r["checkpoint"])["state_dict"] for r in (resumed, result))
        assert all(torch.equal(own[key], expected[key]) for key in expected), f"{self.spec.name}: other weights"

    def evaluate(self, result: Mapping[str, Any]) -> None:
        again = evaluate(result["checkpoint"])["test_result"]
        assert again == result["test_result"], f"{self.spec.name}: its checkpoint tests {again}"

    # The network

    def network(self) -> None:
        data = self._data("prefixes")
        network, _ = build(data.config, dataset_of(data.loaders[0]))
        network.eval()
        if data.config["MODEL_INPUT_TYPE"] is None or not hasattr(network, "ITEM_SEQ"):
            return
        if self.spec.trims_padding:
            self._trimming(network, data)
        network.double()
        if self.spec.all_positions:
            self._positions(network, data)
        with torch.no_grad():
            batch = next(iter(data.loaders[2]))[0]
            scores = _scores(network, batch)
            self._batches(network, batch, scores)
            self._predict(network, batch, scores)

    def _data(self, rows: str) -> PreparedData:
        return prepare_data(RunConfig(self.spec.name, DATASET, {**self.parameters, "rows": rows}))

    def _positions(self, network: Any, data: PreparedData) -> None:
        """Loss and gradients of histories whose items all predict the next, and of every prefix as a row."""
        loader = self._data("sequences").loaders[0]
        rows = dataset_of(data.loaders[0]).inter_feat
        prefixes = rows[rows.target.argsort()].padded()
        sequences = training_batch(loader, dataset_of(loader)[range(len(dataset_of(loader)))])
        drawn = sequences.interaction.keys() - {*prefixes.columns, FIRST_TARGET}
        prefixes.interaction.update({name: sequences[name] for name in drawn})
        found = []
        for batch in (sequences, prefixes):
            network.zero_grad()
            loss: Any = network.calculate_loss(batch)
            loss = sum(loss) if isinstance(loss, tuple) else loss
            loss.backward()
            found.append((loss.detach(), _gradients(network)))
        torch.testing.assert_close(*found, **FLOAT64, msg=lambda m: f"{self.spec.name}: not all positions: {m}")

    def _batches(self, network: Any, batch: Any, scores: torch.Tensor) -> None:
        name = self.spec.name
        order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(_scores(network, batch[order]), scores[order], **FLOAT64, msg=_say(name, "order"))
        parts = [_scores(network, batch[i : i + 1]) for i in range(min(5, len(batch)))]
        torch.testing.assert_close(torch.cat(parts), scores[: len(parts)], **FLOAT64, msg=_say(name, "size"))

    def _predict(self, network: Any, batch: Any, scores: torch.Tensor) -> None:
        items = batch[network.ITEM_ID]
        expected = scores.gather(1, items.unsqueeze(1) - 1).squeeze(1)  # padding has no column here
        own = network.predict(batch)
        torch.testing.assert_close(own, expected, **FLOAT64, msg=lambda m: f"{self.spec.name}.predict: {m}")

    def _trimming(self, network: Any, data: PreparedData) -> None:
        """Loss, gradients and scores of the same rows, padded to the longest history and to the longest one allowed."""
        loader = data.loaders[0]
        rows = dataset_of(loader).inter_feat
        rows = rows[torch.nonzero(rows.target - rows.first < LONGEST // 2).flatten()[:24]]
        found = []
        for trim in (True, False):
            network.zero_grad()
            init_seed(0, True)
            # Data augmentation (BERT4Rec masks items) and negatives take a batch as it comes from the data set.
            batch = training_batch(loader, rows.padded(trim=trim))
            init_seed(0, True)
            loss: Any = network.calculate_loss(batch)
            loss = sum(loss) if isinstance(loss, tuple) else loss
            loss.backward()
            with torch.no_grad():
                found.append((loss.detach(), _gradients(network), _scores(network, batch)))
        torch.testing.assert_close(*found, **FLOAT32, msg=_say(self.spec.name, "padding"))

    # Inference

    def recommend(self, result: Mapping[str, Any]) -> None:
        path = result["checkpoint"]
        config = RunConfig(self.spec.name, DATASET, self.parameters)
        if "recommend" in self.spec.cannot or config["MODEL_TYPE"].name != "SEQUENTIAL":
            _refused(self.spec, "recommend", lambda: Recommender.load(path))
            return
        recommender = Recommender.load(path)
        histories = [["i1", "i2", "i3"], ["i20"], ["unknown"], ["i5", "unknown", "i6", "i7", "i8"]]
        lists = recommender.recommend(histories, k=4)
        assert list(lists["user_id"].value_counts().loc[[0, 1, 2, 3]]) == [4, 4, 4, 4]
        assert set(lists.loc[lists["popular"], "user_id"]) == {2}, f"{self.spec.name}: lists for unknown items"
        alone = recommender.recommend(histories[3:], k=4)
        assert list(alone["item_id"]) == list(lists.loc[lists["user_id"] == 3, "item_id"]), "a list depends on others"
        if isinstance(recommender.network, DiffusionRecommender):
            assert "frequency" in recommender.recommend(histories, k=4, samples=3)
            steps = recommender.with_sampling_steps(1)
            assert steps.network.sampling_steps == 1 and type(steps.network) is type(recommender.network)
        else:
            _refused(self.spec, "samples", lambda: recommender.recommend(histories, samples=3))

    def export(self, result: Mapping[str, Any], kind: str) -> None:
        def attempt() -> Any:
            return export(result["checkpoint"], output=f"exported.{kind}", format=kind)

        network = catalogue.model_class(self.spec.name)
        if kind in self.spec.cannot or "recommend" in self.spec.cannot:
            _refused(self.spec, kind, attempt)
        elif kind == "safetensors" or issubclass(network, Exportable):
            try:
                made = attempt()
            except UserError as error:
                if "reads no histories" not in str(error):
                    raise AssertionError(f"{self.spec.name} cannot be exported as {kind}: {error}") from error
                return
            if kind == "safetensors":
                files = (result["checkpoint"], made["output"])
                own, shared = (Recommender.load(file).recommend([["i1", "i2", "i3"]]) for file in files)
                assert own.equals(shared), f"{self.spec.name} recommends other items once it is shared"


@contextlib.contextmanager
def _stopped_in_epoch(epoch: int) -> Iterator[None]:
    """Let every training within stop, as if killed, at the second batch of a 0-based epoch."""
    between = PluginTrainer.between

    def dying(self: Any, index: int, batches: Any) -> None:
        between(self, index, batches)
        if index == epoch and batches.done == 1:
            raise _Stopped

    with mock.patch.object(PluginTrainer, "between", dying):
        yield


def _figures(result: Mapping[str, Any]) -> dict[str, Any]:
    history = [{k: v for k, v in epoch.items() if "seconds" not in k} for epoch in result["history"]]
    return {"history": history, **{key: result[key] for key in ("best_epoch", "best_valid_result", "test_result")}}


def _finite(loss: Any) -> bool:
    return all(map(_finite, loss)) if isinstance(loss, (list, tuple)) else -float("inf") < loss < float("inf")


def _gradients(network: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def _scores(network: Any, batch: Any) -> torch.Tensor:
    return network.full_sort_predict(batch).view(len(batch), -1)[:, 1:]


def _say(name: str, what: str) -> Callable[[str], str]:
    return lambda message: f"{name}: the {what} of a batch has an influence: {message}"


def _refused(spec: ModelSpec, ability: str, attempt: Callable[[], Any]) -> None:
    """What a model cannot do must be refused in words, and with the reason that its spec states."""
    try:
        attempt()
    except UserError as error:
        reason = spec.cannot.get(ability)
        assert reason is None or reason in str(error), f"{spec.name} refuses {ability} for another reason: {error}"
        return
    raise AssertionError(f"{spec.name} was expected to refuse {ability}, and did it")
