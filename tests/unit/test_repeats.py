"""``repeat_bias`` of RecBole's own sequential models."""

import pandas as pd
import pytest
import torch
from conftest import TINY

from recbole_diffurec import Recommender, UserError, evaluate, run
from recbole_diffurec.host.config import RunConfig, known_parameters
from recbole_diffurec.host.loaders import dataset_of
from recbole_diffurec.training.prepare import PreparedData, build

SMALL = {**TINY, "n_layers": 2, "inner_size": 32, "embedding_size": 16}


def made(model: str, **parameters):
    """The model in evaluation mode, a batch of training rows, and one of test rows."""
    known = {name: value for name, value in SMALL.items() if name in known_parameters(model)}
    data = PreparedData(RunConfig(model, "ml-100k", {**known, **parameters}))
    network, trainer = build(data.config, dataset_of(data.loaders[0]))
    batches = [next(iter(loader)) for loader in data.loaders]
    return network.eval(), trainer, batches[0], batches[2][0]


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec", "NARM", "STAMP", "FEARec", "LightSANs"])
def test_a_bias_of_nothing_is_recboles_model_and_one_of_much_is_of_the_history(model):
    plain, _, rows, users = made(model)
    biased, _, _, _ = made(model, repeat_bias=True)
    biased.load_state_dict(plain.state_dict(), strict=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = plain.calculate_loss(rows)
        torch.manual_seed(0)
        found = biased.calculate_loss(rows)
    torch.testing.assert_close(found, expected)
    scores = plain.full_sort_predict(users)
    torch.testing.assert_close(biased.full_sort_predict(users), scores)

    with torch.no_grad():
        biased.repeat_bias.copy_(-1.0 - torch.arange(len(biased.repeat_bias)))
    added = biased.full_sort_predict(users) - scores
    for row, (items, length) in enumerate(zip(users["item_id_list"], users["item_length"])):
        expected_row = torch.zeros(scores.shape[1])
        for place in range(int(length)):
            expected_row[items[place]] -= 10 * (int(length) - place)
        torch.testing.assert_close(added[row, 1:], expected_row[1:], atol=1e-4, rtol=1e-5)
    one_each = biased.predict(users)
    torch.testing.assert_close(one_each, biased.full_sort_predict(users).gather(1, users["item_id"].unsqueeze(1))[:, 0])


def test_it_is_learned_and_kept(workdir):
    """Nobody rates a film twice in ml-100k: the bias falls, and what is kept scores as what was tested."""
    values = {**TINY, "epochs": 2, "inner_size": 32, "learning_rate": 0.01, "repeat_bias": True}
    result = run("SASRec", **values)
    recommender = Recommender.load(result["checkpoint"])
    assert (recommender.network.repeat_bias.detach() < 0).all()
    assert evaluate(result["checkpoint"], show_progress=False)["test_result"] == result["test_result"]
    history = list(recommender.items[1:6])
    lists = recommender.recommend([history], k=100)
    assert isinstance(lists, pd.DataFrame) and not set(history) & set(lists["item_id"][:20])
    assert result["n_parameters"] == run("SASRec", **{**values, "repeat_bias": False})["n_parameters"] + 8


@pytest.mark.parametrize("model", ["BERT4Rec", "FPMC", "RepeatNet", "TransRec"])
def test_other_losses_are_refused(model, workdir):
    with pytest.raises(UserError, match="repeat_bias is learned by a cross-entropy over all items"):
        run(model, repeat_bias=True, epochs=1, gpu_id="", user_inter_num_interval="[5,50]")


def test_it_is_no_parameter_of_a_model_without_histories():
    with pytest.raises(UserError, match="unknown parameter 'repeat_bias' for model BPR"):
        RunConfig("BPR", "ml-100k", {"repeat_bias": True})
