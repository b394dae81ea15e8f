"""Single models of RecBole that do not work on today's Python stack, or count or say something wrong.

``apply()`` runs when ``recbole_diffurec`` is imported, and imports nothing. Each mend says what breaks, where, in which
versions of RecBole it was seen, and when it can go. Line numbers are those of recbole 1.2.0.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import logging
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from recbole_diffurec.host.hooks import HOOKS
from recbole_diffurec.host.stand_in import With

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("recbole_diffurec")

# Models of RecBole that are not listed, and why.
NOT_LISTED = {
    "KGAT": "it needs the Python package 'dgl', of which PyPI has no release for PyTorch 2.4 or later",
    "lightgbm": "it predicts clicks and ranks no items",
    "xgboost": "it predicts clicks and ranks no items",
}

# Parameters that spare a model the file of weights that its training began with: a checkpoint has all weights itself.
# KD_DAGFM has none; what it computes depends on its phase.
WITHOUT_FIRST_WEIGHTS: dict[str, dict[str, Any]] = {
    "ConvNCF": {"train_method": "no_pretrain"},
    "NAIS": {"pretrain_path": None},
    "NeuMF": {"use_pretrain": False},
    "RaCT": {"train_stage": "actor_pretrain"},
    "S3Rec": {"train_stage": "pretrain"},
}

# Packages, as they are imported and installed, without which a model's training stops half-way.
NEEDED = {"NCL": ("faiss", "faiss-cpu")}

_GENERAL = "recbole.model.general_recommender."
_KNOWLEDGE = "recbole.model.knowledge_aware_recommender."
_SEQUENTIAL = "recbole.model.sequential_recommender."

# Models that drop a share of their input in evaluation as well: module, class, the share's attribute.
DROPPERS = (
    (_KNOWLEDGE + "kgin", "GraphConv", "node_dropout_rate"),
    (_KNOWLEDGE + "mcclk", "GraphConv", "node_dropout_rate"),
    (_SEQUENTIAL + "gru4reckg", "GRU4RecKG", "dropout"),
)

GRAPHS = (
    *(_GENERAL + name for name in ("gcmc", "lightgcn", "ncl", "ngcf", "spectralcf")),
    *(_KNOWLEDGE + name for name in ("kgin", "mcclk")),
)


def apply() -> None:
    """Mend RecBole's models for this process."""
    HOOKS.when_imported("recbole.model.abstract_recommender", plain_parameters)
    HOOKS.when_imported("recbole.model.abstract_recommender", towers)
    for name in GRAPHS:
        HOOKS.when_imported(name, update_of_matrices)
    for name in ("kgin", "mcclk"):
        HOOKS.when_imported(_KNOWLEDGE + name, scatter)
    for name, cls, share in DROPPERS:
        HOOKS.when_imported(name, functools.partial(drop_in_training_alone, cls, share))
    for name in ("kgin", "mcclk"):
        HOOKS.when_imported(_KNOWLEDGE + name, functools.partial(loaded_weights_count, name.upper()))
    HOOKS.when_imported(_SEQUENTIAL + "ksr", precision_of_relations)
    HOOKS.when_imported(_GENERAL + "pop", count_of_items)
    HOOKS.when_imported(_GENERAL + "ract", words_of_ract)
    HOOKS.when_imported(_GENERAL + "ldiffrec", functools.partial(silent, "LDiffRec"))
    HOOKS.when_imported(_SEQUENTIAL + "fearec", functools.partial(silent, "FEARec"))


@contextlib.contextmanager
def plain_parameters(module: Any) -> Iterator[None]:
    """The feature models' first save (DIN, DIEN, FDSA, GRU4RecF, SASRecF), 1.2.0 and 1.2.1.

    They count a layer among the parameters that are saved beside the weights (din.py:102 and its like), a whole object
    that only a pickle can hold. Its weights are in ``state_dict`` already, and the rest of it is made from the data.
    Can go when those lines do.
    """
    yield
    from torch import nn

    other_parameter = module.AbstractRecommender.other_parameter

    @functools.wraps(other_parameter)
    def without_layers(self: Any) -> dict[str, Any]:
        return {name: value for name, value in other_parameter(self).items() if not isinstance(value, nn.Module)}

    module.AbstractRecommender.other_parameter = without_layers


@contextlib.contextmanager
def towers(module: Any) -> Iterator[None]:
    """DSSM with a column of numbers that is no numerical feature, 1.2.0 and 1.2.1.

    Such a column is counted for the width of a tower (abstract_recommender.py:270, 280), but not embedded (293). Can go
    when the two agree.
    """
    yield
    build = module.ContextRecommender.__init__

    @functools.wraps(build)
    def count_what_is_embedded(self: Any, config: Any, dataset: Any) -> None:
        build(self, config, dataset)
        if self.double_tower:
            embedded = {*self.float_field_names, *self.float_seq_field_names}
            self.user_float_field_num = len(embedded.intersection(self.user_field_names))
            self.item_float_field_num = len(embedded.intersection(self.item_field_names))

    module.ContextRecommender.__init__ = count_what_is_embedded


@contextlib.contextmanager
def update_of_matrices(module: ModuleType) -> Iterator[None]:
    """The graph models' adjacency matrix, with scipy 1.13 and later, 1.2.0 and 1.2.1.

    They fill a ``dok_matrix`` by its private method ``_update`` (lightgcn.py:110 and its like), which scipy no longer
    has (RecBole's issue #2034). Can go when they use none.
    """
    yield
    from scipy import sparse

    class Matrix(sparse.dok_matrix):
        """A ``dok_matrix`` that takes in all entries of a dict at once, unchecked."""

        def _update(self, entries: dict[tuple[int, int], Any]) -> None:
            self._dict.update(entries)

    if not hasattr(sparse.dok_matrix, "_update"):
        vars(module)["sp"] = With(sparse, dok_matrix=Matrix)


@contextlib.contextmanager
def scatter(module: Any) -> Iterator[None]:
    """KGIN and MCCLK where ``torch_scatter`` is not installed, 1.2.0 and 1.2.1.

    They import two functions of it (kgin.py:54, mcclk.py:41), whose builds have to fit torch's. PyTorch's own can do
    the same. Can go when they use those.
    """
    yield
    if importlib.util.find_spec("torch_scatter") is not None:
        return
    ours = ModuleType("torch_scatter")
    vars(ours).update(scatter_mean=scatter_mean, scatter_softmax=scatter_softmax)
    forward = module.Aggregator.forward

    @functools.wraps(forward)
    def forward_with_ours(self: Any, *args: Any, **kwargs: Any) -> Any:
        # For as long as the import takes, so that nobody else takes it for the package.
        sys.modules["torch_scatter"] = ours
        try:
            return forward(self, *args, **kwargs)
        finally:
            sys.modules.pop("torch_scatter", None)

    module.Aggregator.forward = forward_with_ours


def scatter_mean(src: Tensor, index: Tensor, dim: int = 0, dim_size: int | None = None) -> Tensor:
    """The mean of the rows that have the same index; zeros where there is none.

    Parameters
    ----------
    src : Tensor
        [R, d].
    index : Tensor
        int [R], in [0, N).
    dim : int
        0, the rows.
    dim_size : int, optional
        N; by default one more than the largest index.

    Returns
    -------
    Tensor
        [N, d].
    """
    n_groups = dim_size or int(index.max()) + 1
    counts = index.bincount(minlength=n_groups).clamp_(min=1)
    return src.new_zeros(n_groups, src.shape[1]).index_add(dim, index, src) / counts.unsqueeze(1)


def scatter_softmax(src: Tensor, index: Tensor, dim: int = 0) -> Tensor:
    """The softmax of each column among the rows that have the same index; see ``scatter_mean``."""
    places = index.unsqueeze(1).expand_as(src)
    nothing = src.new_zeros(int(index.max()) + 1, src.shape[1])
    highest = nothing.scatter_reduce(dim, places, src.detach(), "amax", include_self=False)
    weights = (src - highest[index]).exp()
    return weights / nothing.scatter_add(dim, places, weights)[index]


@contextlib.contextmanager
def drop_in_training_alone(cls: str, share: str, module: ModuleType) -> Iterator[None]:
    """GRU4RecKG, KGIN and MCCLK drop a part of their input in evaluation as in training, 1.2.0 and 1.2.1.

    They ask only whether the share is above 0 (kgin.py:147, mcclk.py:172), or make a layer for dropout, which is in
    training mode, where they use it (gru4reckg.py:87). Their papers' evaluation is of the whole network. Can go when
    they ask for ``training``.
    """
    yield
    dropping = getattr(module, cls)
    forward = dropping.forward

    @functools.wraps(forward)
    def forward_of_all(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.training:
            return forward(self, *args, **kwargs)
        before = getattr(self, share)
        setattr(self, share, 0.0)
        try:
            return forward(self, *args, **kwargs)
        finally:
            setattr(self, share, before)

    dropping.forward = forward_of_all


@contextlib.contextmanager
def loaded_weights_count(cls: str, module: ModuleType) -> Iterator[None]:
    """KGIN and MCCLK are tested with the last epoch's embeddings in place of the best's, 1.2.0 and 1.2.1.

    Evaluation keeps what it computes (kgin.py:439, mcclk.py:655) until the next training step; the other graph models
    have it among their ``other_parameter_name``, so that a checkpoint replaces it. Can go when these have.
    """
    yield
    keeping = getattr(module, cls)
    load = keeping.load_state_dict

    @functools.wraps(load)
    def load_and_forget(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.restore_user_e = self.restore_entity_e = None
        return load(self, *args, **kwargs)

    keeping.load_state_dict = load_and_forget


@contextlib.contextmanager
def precision_of_relations(module: Any) -> Iterator[None]:
    """KSR multiplies single with double precision, which PyTorch refuses, 1.2.0 and 1.2.1.

    It takes the relations' vectors from numpy as they are (ksr.py:92). Can go when it converts them.
    """
    yield
    build = module.KSR.__init__

    @functools.wraps(build)
    def build_in_one_precision(self: Any, config: Any, dataset: Any) -> None:
        build(self, config, dataset)
        self.relation_Matrix = self.relation_Matrix.to(self.entity_embedding.weight.dtype)

    module.KSR.__init__ = build_in_one_precision


@contextlib.contextmanager
def count_of_items(module: Any) -> Iterator[None]:
    """Pop counts an item that comes several times in a batch once, and the negatives that were drawn, 1.2.0 and 1.2.1.

    Its order of the items depends on the batch size and on chance (pop.py:47). Can go when that line adds up, and
    leaves out rows with the label 0.
    """
    yield
    build, calculate_loss = module.Pop.__init__, module.Pop.calculate_loss

    @functools.wraps(build)
    def build_with_label(self: Any, config: Any, dataset: Any) -> None:
        build(self, config, dataset)
        self.LABEL = config["LABEL_FIELD"]

    @functools.wraps(calculate_loss)
    def count_and_calculate_loss(self: Any, interaction: Any) -> Tensor:
        items = interaction[self.ITEM_ID]
        if self.LABEL in interaction:
            items = items[interaction[self.LABEL] > 0]
        items, counts = items.unique(return_counts=True)
        self.item_cnt[items] += counts.unsqueeze(1) - 1
        return calculate_loss(self, {self.ITEM_ID: items})  # which adds the one

    module.Pop.__init__, module.Pop.calculate_loss = build_with_label, count_and_calculate_loss


@contextlib.contextmanager
def words_of_ract(module: Any) -> Iterator[None]:
    """RaCT's second and third stage print a traceback of ``logging``, 1.2.0 and 1.2.1.

    Their message has no place for the path that is given with it (ract.py:75, 84). Can go when it has.
    """
    yield
    build = module.RaCT.__init__

    def make_place(record: logging.LogRecord) -> bool:
        if record.msg == "Load pretrained model from":
            record.msg += " %s"
        return True

    @functools.wraps(build)
    def build_and_say(self: Any, config: Any, dataset: Any) -> None:
        root = logging.getLogger()
        root.addFilter(make_place)
        try:
            build(self, config, dataset)
        finally:
            root.removeFilter(make_place)

    module.RaCT.__init__ = build_and_say


@contextlib.contextmanager
def silent(cls: str, module: ModuleType) -> Iterator[None]:
    """FEARec and LDiffRec print what they choose while they are built, 1.2.0 and 1.2.1.

    It comes before a command's own output (fearec.py:454, 506; ldiffrec.py:84, and the clustering that it calls). It
    goes to the log as a debugging message now. Can go with those lines.
    """
    yield
    talking = getattr(module, cls)
    build = talking.__init__

    @functools.wraps(build)
    def build_silently(self: Any, config: Any, dataset: Any) -> None:
        with contextlib.redirect_stdout(io.StringIO()) as words:
            build(self, config, dataset)
        logger.debug("%s", words.getvalue())

    talking.__init__ = build_silently
