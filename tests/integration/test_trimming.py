"""Trailing all-padding columns change nothing for the models of RecBole whose batches are trimmed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recbole.utils import init_seed

from recbole_diffurec.host import catalogue
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.loaders import dataset_of
from recbole_diffurec.training.prepare import PreparedData, build

# The models of this package are held to it by check_model.
TRIMMED = sorted(catalogue.TRIMS_PADDING)
LENGTH = 40  # longer than any history of the batches below


def model_and_rows(name: str):
    config = RunConfig(name, "ml-100k", {"MAX_ITEM_LIST_LENGTH": LENGTH, "gpu_id": "", "show_progress": False})
    data = PreparedData(config)
    network, _ = build(data.config, dataset_of(data.loaders[0]))
    rows = dataset_of(data.loaders[0]).inter_feat
    short = np.flatnonzero(rows["item_length"].numpy() <= 12)[:24]
    return network, data.loaders[0], rows[short]


def outputs(network, loader, batch):
    """Loss, gradients and scores; dropout off, the same random numbers every time."""
    network.eval()
    network.zero_grad()
    init_seed(0, True)
    # RecBole's data augmentation (BERT4Rec masks items) takes a batch as it comes from the data set.
    batch = loader.transform(dataset_of(loader), batch)
    init_seed(0, True)
    loss = network.calculate_loss(batch)
    loss = sum(loss) if isinstance(loss, tuple) else loss
    loss.backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    with torch.no_grad():
        scores = network.full_sort_predict(batch)
    return loss.detach(), gradients, scores


@pytest.mark.parametrize("name", TRIMMED)
def test_trimming_is_exact(name):
    network, loader, rows = model_and_rows(name)
    padded, trimmed = rows.padded(), rows.padded(trim=True)
    assert padded["item_id_list"].shape[1] == LENGTH and trimmed["item_id_list"].shape[1] == 12
    expected, actual = outputs(network, loader, padded), outputs(network, loader, trimmed)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_a_model_that_reads_the_padded_length_is_left_alone():
    network, loader, rows = model_and_rows("FEARec")
    assert dataset_of(loader)[np.arange(4)]["item_id_list"].shape[1] == LENGTH
    assert not catalogue.find("FEARec").trims_padding
    network.eval()
    with torch.no_grad(), pytest.raises((RuntimeError, IndexError, AssertionError)):
        padded = network.full_sort_predict(rows.padded())
        torch.testing.assert_close(network.full_sort_predict(rows.padded(trim=True)), padded)


def test_masks_that_no_row_has_are_not_computed():
    network, loader, rows = model_and_rows("BERT4Rec")
    batch = loader.transform(dataset_of(loader), rows.padded(trim=True))
    network.eval()
    columns, bmm = [], torch.bmm
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "bmm", lambda a, b: columns.append(a.shape[1]) or bmm(a, b))
        loss = network.calculate_loss(batch)
        expected = type(network).calculate_loss.__wrapped__(network, batch)
    torch.testing.assert_close(loss, expected)
    assert columns == [(batch["MASK_INDEX"] > 0).any(dim=0).sum(), batch["MASK_INDEX"].shape[1]]
    assert columns[0] < columns[1]


def test_a_batch_of_one_item_histories_has_a_loss():
    """BERT4Rec takes a mask on the first item for padding; ``batch_by_length`` makes batches of nothing else."""
    network, loader, rows = model_and_rows("BERT4Rec")
    short = rows[(rows["item_length"] == 1).numpy().nonzero()[0]]
    assert len(short) > 0
    loss, gradients, _ = outputs(network, loader, short.padded(trim=True))
    assert loss == 0 and all(gradient.eq(0).all() for gradient in gradients.values())
    padded = loader.transform(dataset_of(loader), short.padded())
    assert type(network).calculate_loss.__wrapped__(network, padded).isnan()
    assert outputs(network, loader, rows.padded())[0] > 1
