"""Trained models as files for other runtimes: ONNX, torch.export, safetensors, an index or a table of item vectors.

Shapes: B batch, L padded history length, d hidden size, I items with padding row 0.

An exported program is the whole of a model's inference, see ``models.base.Program``.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from recbole_diffurec.errors import UserError, cannot_import
from recbole_diffurec.inference.recommender import Recommender
from recbole_diffurec.models.base import Exportable, Program
from recbole_diffurec.runtime import files
from recbole_diffurec.training.prepare import training_histories
from recbole_diffurec.version import __version__

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors", "faiss": ".faiss", "npy": ".npy"}
OUTPUT = "scores"
TOLERANCE = 1e-4  # of the exported program's scores, relative to the largest
# Of the index: neighbours of a node, and candidates kept while building it and while searching (Malkov, Yashunin 2018).
HNSW_NEIGHBOURS, HNSW_CONSTRUCTION, HNSW_SEARCH = 32, 200, 200
RECALL_AT, RECALL_USERS = 20, 1000


@files.nameable()
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
    checkpoint_file : str or Path
        A ``.pth`` file of ``run``, of a model that is ``Exportable`` (``safetensors``: of every model that
        ``recommend`` takes).
    output : str or Path, optional
        The file, whose folder is made when missing; by default the checkpoint's name with the format's ending.
    format : str, optional
        ``onnx``, ``torch`` (torch.export), ``safetensors`` (the weights), ``faiss`` (an index of item vectors), ``npy``
        (the item vectors, float32 [items, d], without padding).
    input : str or Path, optional
        With ``faiss``, a file of histories to measure the recall on; by default a thousand users of the training data.
    **parameters : object
        Parameters for inference, such as ``sampling_steps=4``; the program's reverse process has that many steps.

    Returns
    -------
    dict of str to object
        With ``output``, ``description`` (both paths), and for programs ``difference`` (the largest from PyTorch's
        scores, relative to the largest score), for ``faiss`` ``recall`` (of the exact top 20).

    Raises
    ------
    UserError
        The format is unknown, its library is not installed, the model cannot be exported, or a file cannot be written.
    """
    path = _checked_output(checkpoint_file, output, format, input)
    # Programs are in full precision.
    recommender = Recommender.load(checkpoint_file, **{**parameters, "gpu_id": "", "enable_amp": False})
    network, spec = recommender.network, recommender.config.spec
    spec.refuse(format, f"be exported as {format}")
    if format != "safetensors" and not isinstance(network, Exportable):
        raise UserError(
            f"model '{spec.name}' cannot be exported as {format}, since it says of neither its program nor its item "
            f"vectors what they are: --format=safetensors takes its weights"
        )
    files.check_writable(path, "output", recommender.config.data_files())
    content, about, measured = _content(recommender, format, input)
    description = {
        "model": spec.name,
        "format": format,
        "recbole_diffurec": __version__,
        "items": [None, *recommender.items[1:]],
        "max_length": recommender.config["MAX_ITEM_LIST_LENGTH"],
        **about,
    }
    with files.atomic_write(path) as file:
        file.write(content)
    files.write_text(f"{path}.json", json.dumps(description, indent=1, ensure_ascii=False))
    return {"output": str(path), "description": f"{path}.json", **measured}


def _content(
    recommender: Recommender, format: str, input: str | Path | None
) -> tuple[bytes, dict[str, Any], dict[str, float]]:
    """The file's content, what its description adds to that of any format, and what was measured of it."""
    network = recommender.network
    if format == "safetensors":
        safetensors = _library("safetensors.torch", format)
        tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
        metadata = {"model": recommender.config.spec.name, "format": "pt"}
        return safetensors.save(tensors, metadata=metadata), {}, {}
    if format == "faiss":
        content, recall = _index(recommender, input)
        about = {"metric": "inner product", "neighbour_0_is_item": 1, "recall_at_20": recall}
        return content, about, {"recall": recall}
    if format == "npy":
        buffer = io.BytesIO()
        np.save(buffer, network.item_vectors().detach()[1:].numpy())
        return buffer.getvalue(), {"row_0_is_item": 1}, {}
    program = network.program().eval()
    content, difference = _serialised(program, recommender, format)
    return content, program.describe(), {"difference": difference}


def _checked_output(
    checkpoint_file: str | Path, output: str | Path | None, format: str, input: str | Path | None
) -> Path:
    """The file to write; what is asked for is refused where it makes no sense or would overwrite what is read."""
    if format not in SUFFIXES:
        raise UserError(f"format must be one of {', '.join(SUFFIXES)}, got '{format}'")
    if input is not None and format != "faiss":
        raise UserError("--input serves to measure an index: leave it out, or use --format=faiss")
    path = _beside(checkpoint_file, SUFFIXES[format]) if output is None else output
    read = (checkpoint_file, input)
    files.check_writable(path, "output", read, regular=True)
    files.check_writable(f"{path}.json", "the file of item ids,", read, regular=True)
    return Path(path)


def _beside(checkpoint_file: str | Path, suffix: str) -> Path:
    try:
        return Path(checkpoint_file).with_suffix(suffix)
    except ValueError:
        raise UserError(f"checkpoint '{checkpoint_file}' is a folder: name the .pth file in it") from None


def _serialised(program: Program, recommender: Recommender, format: str) -> tuple[bytes, float]:
    """The serialised program and how far its scores on other shapes than the traced ones are from ours."""
    longest = recommender.config["MAX_ITEM_LIST_LENGTH"]
    if longest < 3:
        raise UserError(
            f"a program's length is open, and MAX_ITEM_LIST_LENGTH of {longest} leaves it nothing to choose"
        )
    if format == "onnx":
        for library in ("onnx", "onnxscript", "onnxruntime"):
            _library(library, format)
    generator = torch.Generator().manual_seed(0)

    def example(n: int, length: int) -> dict[str, Tensor]:
        items = torch.randint(1, len(recommender.items), (n, length), generator=generator)
        lengths = torch.randint(1, length + 1, (n, 1), generator=generator)
        return program.draws(items * (torch.arange(length) < lengths))

    rows, width = torch.export.Dim("batch", min=1, max=2**20), torch.export.Dim("length", min=2, max=longest)
    with torch.no_grad():
        exported = torch.export.export(
            program, (), example(3, min(5, longest)), dynamic_shapes=program.dynamic_shapes(rows, width)
        )
    content, run = _torch_program(exported) if format == "torch" else _onnx_program(exported, program)
    difference = _largest_difference(run, example, recommender.network, longest)
    if not difference <= TOLERANCE:
        raise UserError(
            f"the {format} program of model '{recommender.config['model']}' gives scores that differ by "
            f"{difference:.1e} of the largest from PyTorch's, so that nothing was written: try another --format"
        )
    return content, difference


def _torch_program(exported: Any) -> tuple[bytes, Callable[[dict[str, Tensor]], Tensor]]:
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    module = exported.module()
    return buffer.getvalue(), lambda inputs: module(**inputs)


def _onnx_program(exported: Any, program: Program) -> tuple[bytes, Callable[[dict[str, Tensor]], Tensor]]:
    runtime = _library("onnxruntime", "onnx")
    names: dict[str, Any] = {"input_names": program.inputs, "output_names": [OUTPUT]}
    with _quiet():
        # Runtimes optimise a program when they load it; doing it here takes most of an export's time.
        made = torch.onnx.export(exported, dynamo=True, optimize=False, verbose=False, **names)
    assert made is not None
    content = made.model_proto.SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, Tensor]) -> Tensor:
        (scores,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        return torch.from_numpy(scores)

    return content, run


@torch.no_grad()
def _largest_difference(
    run: Callable[[dict[str, Tensor]], Tensor],
    example: Callable[[int, int], dict[str, Tensor]],
    network: Any,
    longest: int,
) -> float:
    """Of a program's scores from those of ``full_sort_predict``, over the largest score."""
    errors = []
    for n, length in ((1, 2), (7, longest)):
        inputs = example(n, length)
        lengths = (inputs["item_seq"] != 0).sum(dim=1)
        expected = network.full_sort_predict({network.ITEM_SEQ: inputs["item_seq"], network.ITEM_SEQ_LEN: lengths})[
            :, 1:
        ]
        errors.append((run(inputs)[:, 1:] - expected).abs().max() / expected.abs().max())
    return float(torch.stack(errors).max())  # which, unlike Python's, is NaN if one of them is


def _index(recommender: Recommender, input: str | Path | None) -> tuple[bytes, float]:
    """An HNSW index of the item vectors, place 0 being item 1, and its recall of the exact top 20."""
    faiss = _library("faiss", "faiss")
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


def _library(module: str, format: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise cannot_import(f"--format={format}", error, "'recbole-diffurec[export]'") from None
