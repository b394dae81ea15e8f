"""Trained models as files for other runtimes: ONNX, torch.export, safetensors, a nearest-neighbour index of the items.

Shapes: B batch, L padded history length, d hidden size, S sampling steps, I items with padding row 0.

The exported program is the whole of inference: padded histories and the reverse process's random draws in, scores of
all items out. The draws are inputs, since runtimes draw differently; ``program_inputs`` gives those of the library.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from recbole_diffurec import files
from recbole_diffurec.diffusion.noise import history_keys
from recbole_diffurec.errors import UserError
from recbole_diffurec.layers.ragged import RaggedBatch, Slab
from recbole_diffurec.model.base import DiffusionRecommender
from recbole_diffurec.pipeline import training_histories
from recbole_diffurec.recommend import Recommender
from recbole_diffurec.version import __version__

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors", "faiss": ".faiss"}
INPUTS, OUTPUT = ("item_seq", "noise", "uncertainty"), "scores"
TOLERANCE = 1e-4  # of the exported program's scores, relative to the largest
# Of the index: neighbours of a node, and candidates kept while building it and while searching (Malkov, Yashunin 2018).
HNSW_NEIGHBOURS, HNSW_CONSTRUCTION, HNSW_SEARCH = 32, 200, 200
RECALL_AT, RECALL_USERS = 20, 1000


class PaddedBatch(RaggedBatch):
    """A batch laid out as it came, padding included: one slab, whose shape may be symbolic.

    Parameters
    ----------
    item_seq : int [B, L], right-padded item ids; a row without any is read as one padding item.
    """

    def __init__(self, item_seq: Tensor):
        n, length = item_seq.shape
        device = item_seq.device
        lengths = (item_seq != 0).sum(dim=1, keepdim=True).clamp(min=1)
        position = torch.arange(length, device=device)
        pads = position >= lengths
        bias = torch.zeros(pads.shape, device=device).masked_fill(pads, -torch.inf)[:, None, None, :]
        rows = torch.arange(n, device=device)
        self.n_sequences = n
        self.slabs = [Slab(0, n, 0, length, bias)]
        self.items = item_seq.reshape(-1)
        self.row = rows.unsqueeze(1).expand(n, length).reshape(-1)
        self.real = ~pads.reshape(-1)
        self.age = (lengths - 1 - position).clamp(min=0).reshape(-1)
        self.last = rows * length + lengths.squeeze(1) - 1

    def restore(self, x: Tensor) -> Tensor:
        """The order is that of the given batch already."""
        return x


class _GivenNoise:
    """A noise source that hands out a program's inputs in the order of the reverse process."""

    def __init__(self, noise: Tensor, uncertainty: Tensor, visits: Sequence[int]):
        self._noise, self._uncertainty = noise, uncertainty
        self._place = {t: place for place, t in enumerate(visits)}

    def start(self) -> Tensor:
        return self._noise[0]

    def step(self, t: int) -> Tensor:
        return self._noise[self._place[t] + 1]

    def uncertainty(self, t: int) -> Tensor:
        given = self._uncertainty[self._place[t]]
        return given.reshape(-1, given.shape[-1])


def _visits(network: DiffusionRecommender) -> list[int]:
    """The 0-based diffusion steps in the order in which inference visits them."""
    if network.reverse_start == "last_item":
        return [network.process.n_steps - 1]
    return [int(t) for t in network.process.sampled_steps[::-1]]


class Program(nn.Module):
    """Inference of one model as a function of tensors alone."""

    def __init__(self, network: DiffusionRecommender):
        super().__init__()
        self.network = network

    def forward(self, item_seq: Tensor, noise: Tensor, uncertainty: Tensor) -> Tensor:
        """Scores of all items, [B, I]; the padding row scores minus infinity.

        Parameters
        ----------
        item_seq : int64 [B, L], item numbers, the oldest first, 0 after the most recent.
        noise : [S, B, d] of N(0, 1): x_T, then what each reverse step but the last adds.
        uncertainty : [S, B, L, d], lambda of each visited step, N(delta, delta^2).
        """
        network = self.network
        batch = PaddedBatch(item_seq)
        embeddings = network.item_embedding(batch.items)
        if network.position_embedding is not None:
            embeddings = embeddings + network.position_embedding(batch.age)
        history = network.approximator.encode(embeddings, batch)
        source = _GivenNoise(noise, uncertainty, _visits(network))
        x_0 = network.reverse(history, batch.items[batch.last], source)
        return network.logits(x_0, network.repeat_scores(item_seq))


def program_inputs(network: DiffusionRecommender, item_seq: Tensor, seed: int | None = None) -> dict[str, Tensor]:
    """What ``Program`` takes, with the draws that ``full_sort_predict`` makes for these histories.

    Parameters
    ----------
    item_seq : int64 [B, L], right-padded.
    seed : of the draws; the configuration's ``noise_seed`` by default.
    """
    batch = PaddedBatch(item_seq)
    keys = history_keys(batch.items, batch.age, batch.real, batch.row, batch.n_sequences)
    dtype = network.item_embedding.weight.dtype
    seed = network.inference_seeds[0] if seed is None else seed
    source = network.noise_table.draws(seed, keys, batch.row, batch.age, network.lambda_uncertainty, (dtype, dtype))
    visits = _visits(network)
    shape = (*item_seq.shape, network.hidden_size)
    return {
        "item_seq": item_seq,
        "noise": torch.stack([source.start(), *(source.step(t) for t in visits[:-1])]),
        "uncertainty": torch.stack([source.uncertainty(t).view(shape) for t in visits]),
    }


def export(
    checkpoint_file: str | Path,
    /,
    output: str | Path | None = None,
    format: str = "onnx",
    input: str | Path | None = None,
    **parameters: Any,
) -> dict[str, Any]:
    """Write a trained model for another runtime, and beside it ``OUTPUT.json`` with the item ids and what to feed.

    Parameters
    ----------
    checkpoint_file : a ``.pth`` file of ``run``, of DiffuRec or DiffuRecSys (``safetensors``: of every model that
        ``recommend`` takes).
    output : the file; by default the checkpoint's name with the format's ending.
    format : ``onnx``, ``torch`` (torch.export), ``safetensors`` (the weights), ``faiss`` (an index of item vectors).
    input : with ``faiss``, a file of histories to measure the recall on (see ``recbole_diffurec.histories``); the first
        thousand users of the training data by default.
    parameters : for inference, such as ``sampling_steps=4``; the program's reverse process has that many steps.

    Returns
    -------
    dict with ``output``, ``description`` (both paths), and for programs ``difference`` (the largest from PyTorch's
    scores, relative to the largest score), for ``faiss`` ``recall`` (of the exact top 20).

    Raises
    ------
    UserError
        The format is unknown, its library is not installed, the model cannot be exported, or a file cannot be written.
    """
    if format not in SUFFIXES:
        raise UserError(f"format must be one of {', '.join(SUFFIXES)}, got '{format}'")
    if input is not None and format != "faiss":
        raise UserError("--input serves to measure an index: leave it out, or use --format=faiss")
    recommender = Recommender.load(checkpoint_file, **{**parameters, "gpu_id": ""})
    network = recommender.network
    if format != "safetensors" and not isinstance(network, DiffusionRecommender):
        raise UserError(
            f"model '{recommender.config['model']}' cannot be exported as {format}: DiffuRec and DiffuRecSys can, and "
            f"--format=safetensors takes the weights of this one as well"
        )
    network.enable_amp = False  # programs are in full precision
    if format in ("onnx", "torch") and network.is_ensemble:
        raise UserError(
            "ensemble_seeds cannot be exported: give --ensemble_seeds= and average the softmax of the program's scores "
            "over several draws of its noise"
        )
    path = Path(checkpoint_file).with_suffix(SUFFIXES[format]) if output is None else Path(output)
    if path.resolve() == Path(checkpoint_file).resolve():
        raise UserError(f"output '{path}' is the checkpoint itself: give another file")
    description = {
        "model": recommender.config["model"],
        "format": format,
        "recbole_diffurec": __version__,
        "items": [None, *recommender.items[1:]],
        "max_length": recommender.config["MAX_ITEM_LIST_LENGTH"],
    }
    result: dict[str, Any] = {"output": str(path), "description": f"{path}.json"}
    if format == "safetensors":
        safetensors = _library("safetensors.torch", "safetensors", format)
        tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
        content = safetensors.save(tensors, metadata={"model": description["model"], "format": "pt"})
    elif format == "faiss":
        content, result["recall"] = _index(recommender, input)
        description |= {"metric": "inner product", "neighbour_0_is_item": 1, "recall_at_20": result["recall"]}
    else:
        description |= {
            "inputs": {
                "item_seq": "int64 [batch, length], length from 2 to max_length: item numbers (places in 'items'), the "
                "oldest first, 0 after the last",
                "noise": f"float32 [{len(_visits(network))}, batch, {network.hidden_size}] of N(0, 1)",
                "uncertainty": f"float32 [{len(_visits(network))}, batch, length, {network.hidden_size}] of "
                f"N({network.lambda_uncertainty}, {network.lambda_uncertainty}^2)",
            },
            "outputs": {OUTPUT: "float32 [batch, items]; -inf for the padding item 0"},
            "diffusion_steps_visited": _visits(network),
        }
        content, result["difference"] = _program(network, recommender, format)
    with files.whole(path) as file:
        file.write(content)
    files.write_text(result["description"], json.dumps(description, indent=1, ensure_ascii=False))
    return result


def _program(network: DiffusionRecommender, recommender: Recommender, format: str) -> tuple[bytes, float]:
    """The serialised program and how far its scores on other shapes than the traced ones are from ours."""
    longest = recommender.config["MAX_ITEM_LIST_LENGTH"]
    if longest < 3:
        raise UserError(
            f"a program's length is open, and MAX_ITEM_LIST_LENGTH of {longest} leaves it nothing to choose"
        )
    if format == "onnx":
        for library in ("onnx", "onnxscript", "onnxruntime"):
            _library(library, library, format)
    generator = torch.Generator().manual_seed(0)

    def example(n: int, length: int) -> dict[str, Tensor]:
        items = torch.randint(1, len(recommender.items), (n, length), generator=generator)
        lengths = torch.randint(1, length + 1, (n, 1), generator=generator)
        return program_inputs(network, items * (torch.arange(length) < lengths))

    rows, width = torch.export.Dim("batch", min=1, max=2**20), torch.export.Dim("length", min=2, max=longest)
    shapes = {"item_seq": {0: rows, 1: width}, "noise": {1: rows}, "uncertainty": {1: rows, 2: width}}
    with torch.no_grad():
        exported = torch.export.export(Program(network).eval(), (), example(3, min(5, longest)), dynamic_shapes=shapes)
    run: Callable[[dict[str, Tensor]], Tensor]
    buffer = io.BytesIO()
    if format == "torch":
        torch.export.save(exported, buffer)
        module = exported.module()

        def run(inputs: dict[str, Tensor]) -> Tensor:
            return module(**inputs)
    else:
        runtime = _library("onnxruntime", "onnxruntime", format)
        names: dict[str, Any] = {"input_names": INPUTS, "output_names": [OUTPUT]}
        with _quiet():
            # Runtimes optimise a program when they load it; doing it here takes most of an export's time.
            program = torch.onnx.export(exported, dynamo=True, optimize=False, verbose=False, **names)
        assert program is not None
        buffer.write(program.model_proto.SerializeToString())
        session = runtime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])

        def run(inputs: dict[str, Tensor]) -> Tensor:
            (scores,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
            return torch.from_numpy(scores)

    errors = []
    with torch.no_grad():
        for n, length in ((1, 2), (7, longest)):
            inputs = example(n, length)
            lengths = (inputs["item_seq"] != 0).sum(dim=1)
            sequence = {network.ITEM_SEQ: inputs["item_seq"], network.ITEM_SEQ_LEN: lengths}
            expected = network.full_sort_predict(sequence)[:, 1:]
            errors.append((run(inputs)[:, 1:] - expected).abs().max() / expected.abs().max())
    difference = float(torch.stack(errors).max())  # which, unlike Python's, is NaN if one of them is
    if not difference <= TOLERANCE:
        raise RuntimeError(f"the exported program's scores differ by {difference:.1e} of the largest; nothing written")
    return buffer.getvalue(), difference


def _index(recommender: Recommender, input: str | Path | None) -> tuple[bytes, float]:
    """An HNSW index of the item vectors, place 0 being item 1, and its recall of the exact top 20."""
    faiss = _library("faiss", "faiss-cpu", "faiss")
    vectors = recommender.network.item_vectors().detach()[1:].numpy()
    index = faiss.IndexHNSWFlat(vectors.shape[1], HNSW_NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = HNSW_CONSTRUCTION, HNSW_SEARCH
    index.add(vectors)
    _, histories = next(training_histories(recommender.config) if input is None else recommender.histories(input))
    queries = recommender.vectors(histories[:RECALL_USERS])
    queries = queries[queries.any(axis=1)]  # without the histories that have no known item
    if not len(queries):
        raise UserError("no history holds an item that the model knows: give others with --input")
    k = min(RECALL_AT, len(vectors))
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    _, exact = flat.search(queries, k)
    _, found = index.search(queries, k)
    recall = np.mean([len(set(a) & set(b)) / k for a, b in zip(exact, found)])
    return faiss.serialize_index(index).tobytes(), float(recall)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's words on operators that are not used here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _library(module: str, package: str, format: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"--format={format} needs {package}, which is not installed: pip install 'recbole-diffurec[export]'"
        ) from None
