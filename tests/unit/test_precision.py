"""``enable_amp: auto``: bf16 where the device is faster so, said once; ``True`` where it is slower is warned of."""

from __future__ import annotations

import logging

import pytest
import torch
from conftest import make_batch, make_model

from recbole_diffurec import UserError
from recbole_diffurec.host import config as host_config
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.runtime import precision
from recbole_diffurec.runtime.precision import Bfloat16, bfloat16_on, product_speedup


@pytest.fixture
def device(monkeypatch):
    """Let the processor be one that is fast or slow in bf16."""

    def be(fast: bool) -> None:
        monkeypatch.setattr(precision, "bfloat16_on", lambda kind: Bfloat16(fast, "the test says so"))
        monkeypatch.setattr(precision, "product_speedup", lambda: 4.0 if fast else 1 / 75)
        host_config.once.cache_clear()

    yield be
    host_config.once.cache_clear()


def make(**parameters) -> RunConfig:
    return RunConfig("DiffuRec", "ml-100k", {"gpu_id": "", **parameters})


@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_what_the_device_is_faster_in_and_is_logged_once(device, caplog, fast):
    device(fast)
    with caplog.at_level(logging.INFO, "recbole_diffurec"):
        configs = [make(enable_amp="auto") for _ in range(2)]
        assert caplog.messages == [], "another mistake is told alone"
        for config in configs:
            config.tell_precision()
    assert [config["enable_amp"] for config in configs] == [fast, fast]
    assert caplog.messages == [f"enable_amp auto is {fast}: the test says so"]
    # What is kept of the run is what was asked for, so that the same run has one name on all machines.
    assert configs[0].plain()["enable_amp"] == "auto"


@pytest.mark.parametrize(("fast", "warned"), [(True, 0), (False, 1)])
def test_true_is_kept_and_warned_of_with_the_measured_factor(device, caplog, fast, warned):
    device(fast)
    with caplog.at_level(logging.INFO, "recbole_diffurec"):
        for wanted in (True, False):
            config = make(enable_amp=wanted)
            config.tell_precision()
            assert config["enable_amp"] is wanted
    assert len(caplog.records) == warned
    assert all("75 times as long" in message and "--enable_amp=auto" in message for message in caplog.messages)


def test_other_words_are_refused():
    with pytest.raises(UserError, match="enable_amp must be True, False or auto, got 'fast'"):
        make(enable_amp="fast")


def asked(monkeypatch, capability: str, amx: bool, avx512_bf16: bool, speedup: float) -> Bfloat16:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16, raising=False)
    monkeypatch.setattr(precision, "product_speedup", lambda: speedup)
    return bfloat16_on.__wrapped__("cpu")


def test_flags_are_asked_first_and_a_product_is_timed_where_they_do_not_tell(monkeypatch):
    assert asked(monkeypatch, "AVX2", False, False, 9.0) == Bfloat16(
        False, "the processor has AVX2 and no instructions for bf16"
    )
    assert asked(monkeypatch, "AVX512", False, True, 0.1).fast
    assert asked(monkeypatch, "AVX512", True, False, 0.1).reason == "the processor has AMX"
    assert not asked(monkeypatch, "AVX512", False, False, 0.5).fast
    assert asked(monkeypatch, "SVE256", False, False, 2.5).reason.endswith(
        "timed at 2.5 times the speed of one in float32"
    )


def test_a_gpu_is_asked_for_its_compute_capability(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    for capability, fast in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        assert bfloat16_on.__wrapped__("cuda").fast is fast


def test_the_product_is_timed_within_a_fraction_of_a_second():
    assert 0.001 < product_speedup() < 1000


def test_the_copy_in_bfloat16_is_made_once_until_the_weights_may_change():
    model = make_model(enable_amp=True, diffusion_steps=2).float()
    batch = make_batch([3, 4])
    with torch.no_grad():
        first = model.full_sort_predict(batch)
        copy = model._denoiser_for_inference()
        assert torch.equal(model.full_sort_predict(batch), first) and model._denoiser_for_inference() is copy
        model.train()
        model.item_embedding.weight[1:] += 0.5
        for parameter in model.approximator.parameters():
            parameter += 0.5
        model.eval()
        assert model._denoiser_for_inference() is not copy
        assert not torch.equal(model.full_sort_predict(batch), first)
        weights = model.state_dict()
        model.load_state_dict(weights)
        assert model._denoiser_for_inference() is not copy
