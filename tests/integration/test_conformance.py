"""Every model of this package keeps what users of any model rely on."""

from __future__ import annotations

import pytest

from recbole_diffurec.models.spec import BUILTIN
from recbole_diffurec.testing import check_model


@pytest.mark.parametrize("model", ["CausalRec", "SASRec", "GRU4Rec"])
def test_models_trained_over_all_positions_conform(model: str) -> None:
    check_model(model, {"rows": "sequences", "train_batch_size": 8})


@pytest.mark.parametrize("model", BUILTIN)
def test_models_conform(model: str) -> None:
    check_model(model)
