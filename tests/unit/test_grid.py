"""Which runs a comparison has."""

import pytest

from recbole_diffurec import UserError
from recbole_diffurec.experiments.grid import Entry, plan, split_list


def test_entries(tmp_path):
    assert Entry.parse("V1").model == "DiffuRecSys" and Entry.parse("V1").parameters["offset_noise"] is False
    assert Entry.parse("V2").parameters["offset_noise"] is True
    entry = Entry.parse("DiffuRecSys@n_layers=2+ensemble_seeds=[1,2]")
    assert entry.parameters == {"n_layers": 2, "ensemble_seeds": [1, 2]}
    file = tmp_path / "mine.yaml"
    file.write_text("n_layers: 3\nhidden_size: 8\n")
    assert Entry.parse(f"SASRec@{file}+n_layers=1").parameters == {"n_layers": 1, "hidden_size": 8}
    assert Entry.parse("DiffuRec@diffurec_paper").parameters["MAX_ITEM_LIST_LENGTH"] == 50


def test_lists_keep_what_is_in_brackets():
    assert split_list("A@x=[1,2], B ,C") == ["A@x=[1,2]", "B", "C"]
    assert split_list("") == []


def test_a_plan_is_models_times_data_times_seeds_with_a_key_for_each():
    jobs = plan(["V1", "V2", "SASRec"], ["ml-100k", "ml-1m"], [1, 2], {"epochs": 2})
    assert len(jobs) == 12 and len({job.key for job in jobs}) == 12 and len({job.name for job in jobs}) == 12
    assert [job.entry.label for job in jobs[:3]] == ["V1", "V2", "SASRec"]
    assert all(job.config()["epochs"] == 2 and job.config()["seed"] == job.seed for job in jobs)


def test_the_key_follows_what_the_result_depends_on_and_nothing_else():
    def key(**parameters):
        return plan(["DiffuRecSys"], ["ml-100k"], [1], parameters)[0].key

    assert key(epochs=2) == key(epochs=2, checkpoint_dir="elsewhere", show_progress=False, data_path="x")
    assert len({key(), key(epochs=2), key(learning_rate=0.01), key(sampling_steps=4), key(topk=[10, 20])}) == 5


def test_a_parameter_of_some_models_is_for_them_alone():
    ours, sasrec = plan(["DiffuRecSys", "SASRec"], ["ml-100k"], [1], {"sampling_steps": 4})
    assert ours.config()["sampling_steps"] == 4 and "sampling_steps" not in sasrec.parameters


@pytest.mark.parametrize(
    "models,parameters,says",
    [
        (["DiffuRecs"], {}, "did you mean 'DiffuRec"),
        (["SASRec@best/none"], {}, "unknown experiment 'best/none'"),
        (["SASRec", "SASRec"], {}, "models names 'SASRec' twice"),
        ([], {}, "models is empty"),
        (["SASRec"], {"sampling_stepz": 4}, "unknown parameter 'sampling_stepz'"),
        (["SASRec", "DiffuRec"], {"n_laiers": 4}, "did you mean 'n_layers'"),
        (["SASRec"], {"metrics": ["Recall"], "valid_metric": "Recall@10"}, "needs the metrics Hit and NDCG"),
        (["SASRec"], {"eval_args": {"mode": "uni100"}}, "ranks all items"),
        (["SASRec@n_layers=0"], {}, "n_layers"),
    ],
)
def test_mistakes(models, parameters, says):
    with pytest.raises(UserError, match=says):
        plan(models, ["ml-100k"], [1], parameters)
