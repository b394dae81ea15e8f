"""Where RecBole's insides are touched, and that they are as we know them."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import recbole
from source import PACKAGE, modules, room_of, tree

HOST = Path(recbole.__file__).parent

# Every method and function of RecBole that is overridden, wrapped or replaced, or called though it is private, with the
# parameters that it has in RecBole 1.2.0 and 1.2.1; without them, what only has to be there.
HOOKS = """
config.configurator.Config
    __init__(self, model=None, dataset=None, config_file_list=None, config_dict=None)
    _build_yaml_loader(self)
    _convert_config_dict(self, config_dict)
    _get_final_config_dict(self)
    _init_device(self)
    _load_cmd_line(self)
    _load_internal_config_dict(self, model, model_class, dataset)
    compatibility_settings(self)
data.dataloader.abstract_dataloader.AbstractDataLoader
    _dataset
    _sampler
data.dataloader.abstract_dataloader.NegSampleDataLoader
    _neg_sampling(self, inter_feat)
data.dataloader.general_dataloader.NegSampleEvalDataLoader
    __init__(self, config, dataset, sampler, shuffle=False)
    collate_fn(self, index)
data.dataset.dataset.Dataset
    __getitem__(self, index, join=True)
    _data_filtering(self)
    _del_col(self, feat, field)
    _fill_nan(self)
    _filter_by_field_value(self)
    _get_load_and_unload_col(self, source)
    _get_preset(self)
    _grouped_index(self, group_by_list)
    _load_data(self, token, dataset_path)
    _load_feat(self, filepath, source)
    _load_inter_feat(self, token, dataset_path)
    _preload_weight_matrix(self)
    _remove_duplication(self)
    _reset_index(self)
    _set_alias(self, alias_name, default_value)
    _set_label_by_threshold(self)
    build(self)
    sort(self, by, ascending=True)
data.dataset.sequential_dataset.SequentialDataset
    _aug_presets(self)
    _benchmark_presets(self)
    _change_feat_format(self)
    build(self)
    data_augmentation(self)
    inter_matrix(self, form='coo', value_field=None)
data.interaction.Interaction
    __contains__(self, item)
    __getitem__(self, index)
    __init__(self, interaction)
    __iter__(self)
    _reindex(self, index)
    columns(self)
    drop(self, column)
    to(self, device, selected_field=None)
data.utils
    create_dataset(config)
    data_preparation(config, dataset)
    get_dataloader(config, phase)
evaluator.base_metric.AbstractMetric
    __init__(self, config)
    calculate_metric(self, dataobject)
evaluator.collector.Collector
    data_collect(self, train_data)
    eval_batch_collect(self, scores_tensor, interaction, positive_u, positive_i)
model.abstract_recommender.AbstractRecommender
    calculate_loss(self, interaction)
    full_sort_predict(self, interaction)
    load_other_parameter(self, para)
    other_parameter(self)
    predict(self, interaction)
model.abstract_recommender.ContextRecommender
    __init__(self, config, dataset)
model.abstract_recommender.SequentialRecommender
    __init__(self, config, dataset)
    gather_indexes(self, output, gather_index)
model.general_recommender.ldiffrec.LDiffRec
    __init__(self, config, dataset)
model.general_recommender.pop.Pop
    __init__(self, config, dataset)
    calculate_loss(self, interaction)
model.general_recommender.ract.RaCT
    __init__(self, config, dataset)
model.knowledge_aware_recommender.kgin.Aggregator
    forward
model.knowledge_aware_recommender.mcclk.Aggregator
    forward
model.sequential_recommender.bert4rec.BERT4Rec
    calculate_loss(self, interaction)
model.sequential_recommender.gru4rec.GRU4Rec
    calculate_loss(self, interaction)
model.sequential_recommender.ksr.KSR
    __init__(self, config, dataset)
model.sequential_recommender.sasrec.SASRec
    calculate_loss(self, interaction)
sampler.sampler.AbstractSampler
    _get_candidates_list(self)
trainer.hyper_tuning.HyperTuning
    _build_space_from_file(file)
trainer.trainer.NCLTrainer
    _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False)
trainer.trainer.PretrainTrainer
    pretrain(self, train_data, verbose=True, show_progress=False)
    save_pretrained_model(self, epoch, saved_model_file)
trainer.trainer.Trainer
    __init__(self, config, model)
    _build_optimizer(self, **kwargs)
    _full_sort_batch_eval(self, batched_data)
    _neg_sample_batch_eval(self, batched_data)
    _save_checkpoint(self, epoch, verbose=True, **kwargs)
    _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False)
    _valid_epoch(self, valid_data, show_progress=False)
    evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False)
    fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None)
    resume_checkpoint(self, resume_file)
utils.utils
    get_model(model_name)
    get_trainer(model_type, model_name)
    init_seed(seed, reproducibility)
"""

# The trainer is a subclass of RecBole's, in three files; everyone else asks host.
INSIDE = {"training.keeping", "training.scoring", "training.trainer"}


def inside(module: str) -> bool:
    """Whether a module may touch what RecBole keeps to itself."""
    return room_of(module) == "host" or module in INSIDE


def hooks() -> dict[tuple[str, str], str | None]:
    """{(place, name): its parameters, None where they do not matter}."""
    found, place = {}, ""
    for line in filter(None, HOOKS.split("\n")):
        if not line.startswith(" "):
            place = line
            continue
        name, parenthesis, parameters = line.strip().rstrip(")").partition("(")
        found[place, name] = parameters if parenthesis else None
    return found


def definitions(scope: ast.AST) -> Iterator[tuple[str, ast.FunctionDef | None]]:
    """What a class or a module defines: its functions, and the attributes that its methods set."""
    for node in getattr(scope, "body", ()):
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
    for node in ast.walk(scope):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, None


def host_scope(place: str) -> ast.AST | None:
    """The class, or else the module, of RecBole at ``place``."""
    path = HOST.joinpath(*place.split("."))
    if path.with_suffix(".py").is_file():
        return tree(path.with_suffix(".py"))
    path = path.parent.with_suffix(".py")
    classes = tree(path).body if path.is_file() else []
    name = place.rpartition(".")[2]
    return next((node for node in classes if isinstance(node, ast.ClassDef) and node.name == name), None)


@pytest.mark.parametrize(("place", "name"), hooks())
def test_recbole_has_what_we_build_on(place, name):
    scope = host_scope(place)
    found = dict(reversed(list(definitions(scope)))) if scope is not None else {}
    assert name in found, f"RecBole renamed it: recbole.{place}.{name} is not there"
    if hooks()[place, name] is not None:
        for argument in ast.walk(found[name].args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
        assert ast.unparse(found[name].args) == hooks()[place, name], f"RecBole changed recbole.{place}.{name}"


@functools.cache
def private_names() -> frozenset[str]:
    """What RecBole defines with one underscore in front, single models aside."""
    folders = ("config", "data", "evaluator", "quick_start", "sampler", "trainer", "utils")
    paths = [path for folder in folders for path in HOST.joinpath(folder).rglob("*.py")]
    paths.append(HOST / "model" / "abstract_recommender.py")
    nodes = [node for path in paths for node in ast.walk(tree(path))]
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    return frozenset(name for name in names if name.startswith("_") and not name.startswith("__"))


def touched(module: str) -> set[str]:
    """The private names of RecBole that a module uses or overrides, and does not define as its own."""
    nodes = list(ast.walk(tree(modules()[module])))
    methods = [node for cls in nodes if isinstance(cls, ast.ClassDef) and cls.bases for node in cls.body]
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef) and node not in methods}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)} - own
    used |= {node.name for node in methods if isinstance(node, ast.FunctionDef)}
    used |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return used & private_names()


def test_private_names_are_known():
    assert {"_dataset", "_train_epoch", "_load_inter_feat", "_reindex", "_build_yaml_loader"} <= private_names()


def test_recboles_private_names_are_for_host_and_the_trainer():
    found = {module: names for module in modules() if not inside(module) and (names := touched(module))}
    assert not found, "ask host for it, or put it there"


def test_recboles_data_code_is_for_host_and_the_trainer():
    def asks(module: str) -> bool:
        nodes = ast.walk(tree(modules()[module]))
        names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        return any(f"{name}.".startswith("recbole.data.") for name in names)

    assert [module for module in modules() if asks(module) and not inside(module)] == []


@pytest.mark.slow  # .ci/run has it, beside mypy
def test_types_of_the_host_are_those_that_it_has():
    """``stubs`` gives mypy types for RecBole, which has none; what RecBole renames would go unnoticed there."""
    command = [sys.executable, "-m", "mypy.stubtest", "recbole", "--ignore-missing-stub", "--concise"]
    command.append(f"--mypy-config-file={PACKAGE.parent / 'pyproject.toml'}")
    environment = {**os.environ, "MYPYPATH": str(PACKAGE.parent / "stubs")}
    done = subprocess.run(command, cwd=PACKAGE.parent, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), f"RecBole renamed it: {done.stdout}"


def overridden() -> Iterator[tuple[str, str]]:
    """(place, name) of what our classes override of RecBole's, and of what is replaced in its modules."""
    for module in filter(lambda module: inside(module) or room_of(module) == "models", modules()):
        loaded = importlib.import_module(f"recbole_diffurec.{module}")
        for cls in vars(loaded).values():
            if not inspect.isclass(cls) or cls.__module__ != loaded.__name__:
                continue
            bases = [base for base in cls.__mro__ if base.__module__.startswith("recbole.")]
            for name, value in vars(cls).items():
                base = next((base for base in bases if name in vars(base)), None)
                if base is not None and (inspect.isfunction(value) or isinstance(value, property)):
                    yield f"{base.__module__.removeprefix('recbole.')}.{base.__name__}", name


def replaced(module: str) -> Iterator[tuple[str, str]]:
    """(class or "", name) of what a module puts in the place of something in a module of RecBole."""
    for node in ast.walk(tree(modules()[module])):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "replace":
            yield "", ast.literal_eval(node.args[1])
        for target in node.targets if isinstance(node, ast.Assign) else ():
            for place in target.elts if isinstance(target, ast.Tuple) else [target]:
                way = ast.unparse(place).split(".")
                if len(way) == 3 and way[1][:1].isupper():  # module.Class.method
                    yield way[1], way[2]


def test_the_table_of_hooks_is_complete():
    listed = hooks()
    assert set(overridden()) <= listed.keys()
    used = {name for module in modules() if inside(module) for name in touched(module)}
    assert used <= {name for _, name in listed}
    classes = {(place.rpartition(".")[2], name) for place, name in listed}
    functions = {name for place, name in listed if not place.rpartition(".")[2][:1].isupper()}
    for module in filter(inside, modules()):
        for cls, name in replaced(module):
            known = (cls, name) in classes if cls else name in functions | {place for place, _ in classes}
            assert known, f"{module} replaces {cls}.{name}"
