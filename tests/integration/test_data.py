"""Order in time, prefixes without copies, masks: against plain pandas and against RecBole itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.dataset import SequentialDataset
from recbole.data.utils import data_preparation
from recbole.utils import init_seed

from recbole_diffurec.data.rows import ROW
from recbole_diffurec.errors import UserError
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.dataset import SequenceDataset, dataset_class
from recbole_diffurec.host.loaders import dataset_of
from recbole_diffurec.training.prepare import PreparedData, expected_counts


def write_inter(folder: Path, frame: pd.DataFrame, name: str = "toy") -> None:
    (folder / name).mkdir(exist_ok=True)
    types = {"user_id": "token", "item_id": "token", "timestamp": "float"}
    frame = frame.rename(columns={column: f"{column}:{types.get(column, 'float')}" for column in frame})
    frame.to_csv(folder / name / f"{name}.inter", sep="\t", index=False)


def prepare(folder: Path, model: str = "DiffuRecSys", name: str = "toy", **parameters) -> PreparedData:
    values = {"data_path": str(folder), "gpu_id": "", "topk": [1], "valid_metric": "NDCG@1", **parameters}
    return PreparedData(RunConfig(model, name, values))


def rows(data: PreparedData, phase: int) -> dict[str, tuple[list[str], str]]:
    """user -> (history, target) of one split, in the data's own ids."""
    dataset = dataset_of(data.loaders[phase])
    batch = dataset[np.arange(len(dataset))]
    tokens = {name: np.array(values) for name, values in data.id_tokens.items()}
    return {
        tokens["users"][user]: (tokens["items"][seq[:length]].tolist(), tokens["items"][target])
        for user, seq, length, target in zip(
            *(batch[name].numpy() for name in ("user_id", "item_id_list", "item_length", "item_id"))
        )
    }


def expected_rows(frame: pd.DataFrame, from_end: int, keep: int) -> dict[str, tuple[list[str], str]]:
    """The same from a stable float64 sort in pandas."""
    frame = frame.sort_values("timestamp", kind="stable")
    sequences = {str(user): group["item_id"].astype(str).tolist() for user, group in frame.groupby("user_id")}
    end = {user: len(seq) - from_end for user, seq in sequences.items()}
    return {user: (seq[max(0, end[user] - keep) : end[user]], seq[end[user]]) for user, seq in sequences.items()}


@pytest.mark.parametrize("unit", [1, 1000], ids=["seconds", "milliseconds"])
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([3, 50, 10**6]))
def test_histories_and_targets_equal_a_float64_sort(tmp_path_factory, unit, seed, spread):
    """Times seconds apart around 1.4e9, which float32 cannot tell apart, with ties, in shuffled file order."""
    folder = tmp_path_factory.mktemp("order")
    rng = np.random.default_rng(seed)
    n = 120
    frame = pd.DataFrame(
        {
            # Four each at least: with fewer, RecBole has nothing to leave out.
            "user_id": rng.permutation(np.append(np.repeat(np.arange(8), 4), rng.integers(0, 8, n - 32))) + 100,
            "item_id": rng.integers(0, 12, n),
            "timestamp": (1_400_000_000 + rng.integers(0, spread, n)) * unit,
        }
    )
    write_inter(folder, frame)
    data = prepare(folder, MAX_ITEM_LIST_LENGTH=6, user_inter_num_interval="[0,inf)", item_inter_num_interval="[0,inf)")
    assert rows(data, 2) == expected_rows(frame, 1, keep=6)
    assert rows(data, 1) == expected_rows(frame, 2, keep=6)
    ties = frame.duplicated(["user_id", "timestamp"], keep=False).sum()
    assert data.n_time_ties == ties


def test_ml_100k_in_true_order():
    """RecBole alone has 149 of 943 test targets wrong here, since its times are float32 when it sorts them."""
    config = RunConfig("DiffuRecSys", "ml-100k", {"gpu_id": "", "MAX_ITEM_LIST_LENGTH": 800})
    data = PreparedData(config)
    assert (data.n_users, data.n_items, data.n_interactions) == (943, 1349, 99287)
    assert expected_counts(config) == (943, 1349, 99287)
    frame = pd.read_csv(Path(config["data_path"]) / "ml-100k.inter", sep="\t", dtype={"item_id:token": str})
    frame.columns = [name.split(":")[0] for name in frame]
    while True:  # 5-core
        kept = frame.groupby("user_id")["item_id"].transform("size").ge(5)
        kept &= frame.groupby("item_id")["user_id"].transform("size").ge(5)
        if kept.all():
            break
        frame = frame[kept]
    assert rows(data, 2) == expected_rows(frame, 1, keep=800)
    assert rows(data, 1) == expected_rows(frame, 2, keep=800)


def toy(folder: Path, n: int = 200, seed: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"user_id": rng.integers(0, 15, n), "item_id": rng.integers(0, 20, n)})
    frame["timestamp"] = rng.permutation(n)
    write_inter(folder, frame)
    return frame


def test_rows_are_those_of_recboles_own_data_set(tmp_path):
    """On times that float32 holds, every split, batch and column equals RecBole's, in the same order."""
    toy(tmp_path)
    config = RunConfig(
        "SASRec",
        "toy",
        {"data_path": str(tmp_path), "gpu_id": "", "MAX_ITEM_LIST_LENGTH": 5, "train_batch_size": 32},
    )
    loaders = []
    for cls in (dataset_class(config), SequentialDataset):
        init_seed(1, True)
        if cls is SequentialDataset:

            class Ordered(SequentialDataset):
                """RecBole's class on interactions in our order, so that ids are numbered alike."""

                def _remap_ID_all(self):
                    users, _ = pd.factorize(self.inter_feat["user_id"])
                    order = np.lexsort((self.inter_feat["timestamp"], users))
                    self.inter_feat = self.inter_feat.iloc[order].reset_index(drop=True)
                    super()._remap_ID_all()

            cls = Ordered
        dataset = cls(config)
        loaders.append(data_preparation(config, dataset))
    for ours, theirs in zip(*loaders):
        assert len(dataset_of(ours)) == len(dataset_of(theirs)) > 0
        for a, b in zip(ours, theirs):
            a, b = (batch[0] if isinstance(batch, tuple) else batch for batch in (a, b))
            assert set(a.columns) == {*b.columns, ROW}
            for column in b.columns:
                assert torch.equal(a[column], b[column]), column
    ours, theirs = (dataset_of(split[0]).inter_matrix(form="csr") for split in loaders)
    assert (ours != theirs).nnz == 0


def test_preparation_makes_no_padded_copy(tmp_path):
    toy(tmp_path)
    data = prepare(tmp_path, MAX_ITEM_LIST_LENGTH=7)
    dataset = dataset_of(data.loaders[0])
    assert isinstance(dataset, SequenceDataset)
    assert "item_id_list" not in dataset.inter_feat.interaction
    assert dataset.inter_feat.flat["item_id_list"].shape == (data.n_interactions,)
    assert dataset.inter_feat["item_id_list"].shape == (len(dataset), 7)


def seen_by_user(data: PreparedData, phase: int) -> dict[str, set[str]]:
    """user -> items that the loader of a split says are masked."""
    loader = data.loaders[phase]
    tokens = {name: np.array(values) for name, values in data.id_tokens.items()}
    seen: dict[str, set[str]] = {}
    for interaction, history, _, _ in loader:
        if history is None:
            history = dataset_of(loader).seen_items(interaction)
        users = tokens["users"][interaction["user_id"].numpy()]
        for user in users:
            seen[user] = set()
        for row, item in zip(*(index.tolist() for index in history)):
            seen[users[row]].add(tokens["items"][item])
    return seen


@pytest.mark.parametrize("phase", [1, 2], ids=["validation", "test"])
def test_masks_are_the_same_for_sequential_and_general_models(tmp_path, phase):
    """Everything before the target, beyond the kept history too, and never the target itself."""
    frame = toy(tmp_path)
    sequential = prepare(tmp_path, mask_seen=True, MAX_ITEM_LIST_LENGTH=3)
    general = prepare(tmp_path, "BPR", mask_seen=True)
    expected = {
        user: set(history) - {target} for user, (history, target) in expected_rows(frame, 3 - phase, 999).items()
    }
    assert seen_by_user(sequential, phase) == expected
    assert seen_by_user(general, phase) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user_id:token\titem_id:token\n1\t2\n", "timestamp:float"),
        ("user_id:token\titem_id:token\ttimestamp:token\n1\t2\t3\n", "timestamp:float"),
        ("user_id\titem_id\ttimestamp\n1\t2\t3\n", "user_id:token"),
        ("user_id:token\titem_id:token\ttimestamp:float\n1\t2\tnoon\n", "noon"),
        ("user_id:token\titem_id:token\ttimestamp:float\n1\t2\t3\n1\t2\tnan\n", "line 3"),
        ("", "user_id:token"),
    ],
)
def test_malformed_files_are_refused(tmp_path, content, message):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "toy.inter").write_text(content)
    with pytest.raises(UserError, match=message):
        prepare(tmp_path)


def test_filtering_everything_away_is_explained(tmp_path):
    toy(tmp_path)
    with pytest.raises(UserError, match="no interaction of data set 'toy' is left"):
        prepare(tmp_path, user_inter_num_interval="[1000,inf)")


def test_columns_may_be_renamed(tmp_path):
    frame = toy(tmp_path)
    path = tmp_path / "toy" / "toy.inter"
    path.write_text(
        path.read_text().replace("user_id:", "who:").replace("item_id:", "what:").replace("timestamp:", "t:")
    )
    data = prepare(tmp_path, USER_ID_FIELD="who", ITEM_ID_FIELD="what", TIME_FIELD="t")
    batch = next(iter(data.loaders[2]))[0]
    targets = np.array(data.id_tokens["items"])[batch["what"].numpy()]
    assert sorted(targets) == sorted(target for _, target in expected_rows(frame, 1, 5).values())


@pytest.mark.parametrize(
    ("name", "counts"),
    [("amazon-beauty", (22363, 12101, 198502)), ("ml-1m", (6040, 3706, 1000209))],
)
def test_published_counts(shared_data, name, counts):
    config = RunConfig("DiffuRecSys", name, {"data_path": str(shared_data), "gpu_id": ""})
    data = PreparedData(config)
    assert (data.n_users, data.n_items, data.n_interactions) == counts == expected_counts(config)


def test_ml_1m_has_the_5_core_counts_with_the_flags(shared_data):
    core = {"user_inter_num_interval": "[5,inf)", "item_inter_num_interval": "[5,inf)"}
    config = RunConfig("DiffuRecSys", "ml-1m", {"data_path": str(shared_data), "gpu_id": "", **core})
    data = PreparedData(config)
    assert (data.n_users, data.n_items, data.n_interactions) == (6040, 3416, 999611) == expected_counts(config)
