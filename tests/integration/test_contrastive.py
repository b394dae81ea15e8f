"""DuoRec and CL4SRec on prepared data: what they read, what they contrast, and that the data stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recbole.utils import init_seed

from recbole_diffurec.data.rows import ROW, RowHistories, SameTarget
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.dataset import PrefixRows
from recbole_diffurec.training.prepare import PreparedData, build

SMALL = {"gpu_id": "", "show_progress": False, "user_inter_num_interval": "[5,30]"}


def prepared(name: str, **parameters: Any):
    """A small model in training mode, its training loader and its trainer."""
    values = {
        **SMALL,
        "MAX_ITEM_LIST_LENGTH": 12,
        "hidden_size": 16,
        "inner_size": 16,
        "train_batch_size": 64,
        "epochs": 1,
        **parameters,
    }
    config = RunConfig(name, "ml-100k", values)
    loader = PreparedData(config).loaders[0]
    return *build(config, loader._dataset), loader


def test_histories_of_rows_are_those_of_the_training_data(workdir):
    loader, valid, _ = PreparedData(RunConfig("SASRec", "ml-100k", {**SMALL, "MAX_ITEM_LIST_LENGTH": 7})).loaders
    dataset = loader._dataset
    rows: PrefixRows = dataset.inter_feat
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:200]
    batch = dataset[chosen.numpy()]
    item_seq, lengths = RowHistories(rows, "item_id_list")(batch[ROW])
    assert torch.equal(lengths, batch["item_length"])
    assert torch.equal(item_seq[:, : batch["item_id_list"].shape[1]], batch["item_id_list"])
    assert torch.equal(rows.flat["item_id_list"][batch[ROW]], batch["item_id"])
    # A number is the row's own in every split.
    assert not set(batch[ROW].tolist()) & set(valid._dataset[:50][ROW].tolist())
    # A drawn row is a training row, whose target is never one of validation or test.
    drawn = SameTarget(rows.target, rows.flat["item_id_list"])(rows.target)
    assert set(drawn.tolist()) <= set(rows.target.tolist())


@pytest.mark.parametrize("name", ["DuoRec", "CL4SRec"])
def test_an_epoch_leaves_the_stored_rows_as_they_were(name, workdir):
    network, trainer, loader = prepared(name)
    rows = loader._dataset.inter_feat
    before = {column: rows[column].clone() for column in rows.columns}
    flat = {column: values.clone() for column, values in rows.flat.items()}
    batch = next(iter(loader))
    given_batch = {column: batch[column].clone() for column in batch.columns}
    network.calculate_loss(batch)
    assert all(torch.equal(batch[column], values) for column, values in given_batch.items())
    trainer._train_epoch(loader, 0)
    rows._written.clear()
    assert all(torch.equal(rows[column], values) for column, values in before.items())
    assert all(torch.equal(rows.flat[column], values) for column, values in flat.items())


@pytest.mark.parametrize("name", ["DuoRec", "CL4SRec"])
def test_trailing_padding_changes_no_draw(name, workdir):
    """In training: with equal seeds, views and masks are the same in a wider batch."""
    network, _, loader = prepared(name)
    dataset = loader._dataset
    short = (dataset.inter_feat["item_length"] <= 5).nonzero().squeeze(1)[:40]
    losses = []
    for trim in (False, True):
        batch = dataset.inter_feat[short].padded(trim=trim)
        init_seed(0, True)
        losses.append(network.train().calculate_loss(batch))
    assert batch["item_id_list"].shape[1] == 5
    torch.testing.assert_close(*losses)


def test_duorec_contrasts_what_it_says(workdir):
    """With no dropout the two passes are one, so that each contrast is known from the two kinds of histories."""
    dropout = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}
    network, _, loader = prepared("DuoRec", lmd=0.3, lmd_sem=0.7, **dropout)
    rows = loader._dataset.inter_feat
    batch = next(iter(loader))
    drawn = []
    found = network.histories.forward
    network.histories.forward = lambda numbers: drawn.append(numbers) or found(numbers)
    parts = {}
    for contrast in ("un", "su", "us", "us_x"):
        network.contrast = contrast
        init_seed(0, True)
        parts[contrast] = [part.item() for part in network.calculate_loss(batch)]
    assert len(drawn) == 3 and all(numbers.equal(drawn[0]) for numbers in drawn)
    assert torch.equal(rows.flat["item_id_list"][drawn[0]], batch["item_id"])
    assert len({parts[contrast][0] for contrast in parts}) <= 2  # rounding apart
    un, su, us, us_x = (parts[contrast][1] for contrast in ("un", "su", "us", "us_x"))
    assert us_x == pytest.approx(su, rel=1e-5) and us == pytest.approx(un + su, rel=1e-5)
    own = network.represent(batch["item_id_list"], batch["item_length"])
    other = network.represent(*found(drawn[0]))
    assert un == pytest.approx(0.3 * network.contrast_between(own, own, batch[ROW]).item(), rel=1e-5)
    assert su == pytest.approx(0.7 * network.contrast_between(own, other, batch[ROW]).item(), rel=1e-5)


def test_two_passes_over_a_history_have_their_own_dropout(workdir):
    network, _, loader = prepared("DuoRec")
    batch = next(iter(loader))
    own = batch["item_id_list"], batch["item_length"]
    first, second = network.train().represent_views([own, own])
    assert not torch.isclose(first, second).all(dim=1).any()
