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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from recbole_diffurec.errors import UserError, cannot_import
from recbole_diffurec.inference.recommender import Recommender
from recbole_diffurec.inference.sharing import hub_library
from recbole_diffurec.models.base import Exportable, NotApplicable, Program
from recbole_diffurec.runtime import files
from recbole_diffurec.training.prepare import training_histories
from recbole_diffurec.version import __version__

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors", "faiss": ".faiss", "npy": ".npy"}
PROGRAMS = ("onnx", "torch")
TOLERANCE = 1e-4  # of what the exported program gives, relative to the largest
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
    returns: str = "scores",
    noise: str = "input",
    results: Sequence[str | Path] = (),
    push_to: str | None = None,
    **parameters: Any,
) -> dict[str, Any]:
    """Write a trained model for another runtime, and beside it ``OUTPUT.json`` with the item ids and what to feed.

    Parameters
    ----------
    checkpoint_file : str or Path
        A ``.pth`` file of ``run``, or a ``.safetensors`` file that was made of one, of a model that is ``Exportable``
        (``safetensors``: of every model that ``recommend`` takes).
    output : str or Path, optional
        The file, whose folder is made when missing; by default the checkpoint's name with the format's ending.
    format : str, optional
        ``onnx``, ``torch`` (torch.export), ``safetensors`` (the model to share, without the ids of users, and its card
        ``OUTPUT.md``), ``faiss`` (an index of item vectors), ``npy`` (the item vectors, float32 [items, d], without
        padding).
    input : str or Path, optional
        With ``faiss``, a file of histories to measure the recall on; by default a thousand users of the training data.
    returns : str, optional
        Of ``onnx`` and ``torch``: ``scores`` of all items, or the ``query`` to search an index of item vectors with.
    noise : str, optional
        Of ``onnx`` and ``torch``: ``input``, the program takes its noise, or ``seed``, it makes it of a seed as the
        model does.
    results : Sequence of (str or Path), optional
        With ``safetensors``, files that ``run``, ``evaluate`` and ``audit`` wrote with ``result_file``, for the card.
    push_to : str, optional
        With ``safetensors``, ``ORGANISATION/NAME`` on the Hugging Face Hub, which gets the model and its card as well.
    **parameters : object
        Parameters for inference, such as ``sampling_steps=4``; the program's reverse process has that many steps.

    Returns
    -------
    dict of str to object
        With ``output``, ``description`` (both paths), and for programs ``difference`` (the largest from what PyTorch
        gives, relative to its largest), for ``faiss`` ``recall`` (of the exact top 20), for ``safetensors`` ``card``
        and, with ``push_to``, ``commit`` (its address).

    Raises
    ------
    UserError
        The format is unknown, its library is not installed, the model cannot be exported, or a file cannot be written.
    """
    asked = _Asked(format, input, returns, noise, results, push_to)
    path = _checked_output(checkpoint_file, output, asked)
    return _written(path, _opened(checkpoint_file, asked, parameters), asked)


@dataclass(frozen=True)
class _Asked:
    """What an export is to be like; what makes no sense is refused."""

    format: str
    input: str | Path | None
    returns: str
    noise: str
    results: Sequence[str | Path]
    push_to: str | None

    def __post_init__(self) -> None:
        if self.format not in SUFFIXES:
            raise UserError(f"format must be one of {', '.join(SUFFIXES)}, got '{self.format}'")
        if self.input is not None and self.format != "faiss":
            raise UserError("--input serves to measure an index: leave it out, or use --format=faiss")
        for name, choices in (("returns", ("scores", "query")), ("noise", ("input", "seed"))):
            value = getattr(self, name)
            if value not in choices:
                raise UserError(f"{name} must be {' or '.join(choices)}, got {value!r}")
            if value != choices[0] and self.format not in PROGRAMS:
                raise UserError(f"--{name} says what a program is like: leave it out, or use --format=onnx or torch")
        self._check_sharing()

    def _check_sharing(self) -> None:
        if isinstance(self.results, (str, Path)):
            raise UserError(f"results must be a list of files, got {self.results!r}: give [{str(self.results)!r}]")
        if self.results and self.format != "safetensors":
            raise UserError("--results are for a model's card: leave them out, or use --format=safetensors")
        if self.push_to is not None:
            if self.format != "safetensors":
                raise UserError("--push_to shares a model: leave it out, or use --format=safetensors")
            hub_library().check_name(self.push_to)


def _opened(checkpoint_file: str | Path, asked: _Asked, parameters: dict[str, Any]) -> Recommender:
    """The model, which can be exported so."""
    precision = {"enable_amp": False} if asked.format in PROGRAMS else {}  # programs are in full
    recommender = Recommender.load(checkpoint_file, **{**parameters, "gpu_id": "", **precision})
    spec = recommender.config.spec
    spec.refuse(asked.format, f"be exported as {asked.format}")
    if asked.format != "safetensors" and not isinstance(recommender.network, Exportable):
        raise UserError(
            f"model '{spec.name}' cannot be exported as {asked.format}, since it says of neither its program nor its "
            f"item vectors what they are: --format=safetensors takes its weights"
        )
    return recommender


def _written(path: Path, recommender: Recommender, asked: _Asked) -> dict[str, Any]:
    """What ``export`` returns, once all files are written."""
    files.check_writable(path, "output", recommender.config.data_files())
    card = recommender.card(asked.results, path.name) if asked.format == "safetensors" else None
    content, about, measured = (_program_content if asked.format in PROGRAMS else _content)(recommender, asked)
    description = {
        "model": recommender.config.spec.name,
        "format": asked.format,
        "recbole_diffurec": __version__,
        "items": [None, *recommender.items[1:]],
        "max_length": recommender.config["MAX_ITEM_LIST_LENGTH"],
        **about,
    }
    with files.atomic_write(path) as file:
        file.write(content)
    files.write_text(f"{path}.json", json.dumps(description, indent=1, ensure_ascii=False))
    written = {"output": str(path), "description": f"{path}.json", **measured}
    if card is not None:
        files.write_text(f"{path}.md", card)
        written["card"] = f"{path}.md"
    if asked.push_to is not None:
        written["commit"] = recommender.push_to_hub(asked.push_to, asked.results)
    return written


def _content(recommender: Recommender, asked: _Asked) -> tuple[bytes, dict[str, Any], dict[str, float]]:
    """The file's content, what its description adds to that of any format, and what was measured of it."""
    network = recommender.network
    if asked.format == "safetensors":
        return recommender.as_safetensors(), {}, {}
    if asked.format == "faiss":
        content, recall = _index(recommender, asked.input)
        about = {"metric": "inner product", "neighbour_0_is_item": 1, "recall_at_20": recall}
        return content, {**about, **_not_in_query(network)}, {"recall": recall}
    buffer = io.BytesIO()
    np.save(buffer, network.item_vectors().detach()[1:].numpy())
    return buffer.getvalue(), {"row_0_is_item": 1, **_not_in_query(network)}, {}


def _program_content(recommender: Recommender, asked: _Asked) -> tuple[bytes, dict[str, Any], dict[str, float]]:
    """``_content`` of a program."""
    network = recommender.network
    program, wanted = network.program(), ""
    try:
        if asked.noise == "seed":
            wanted = "make its noise of a seed"
            program = program.seeded()
        if asked.returns == "query":
            wanted = "return queries"
            program = program.for_queries()
    except NotApplicable as reason:
        raise UserError(
            f"the program of model '{recommender.config.spec.name}' cannot {wanted}, because {reason}: leave out "
            f"--{'noise' if 'noise' in wanted else 'returns'}"
        ) from None
    content, difference = _serialised(program.eval(), recommender, asked.format)
    about = program.describe()
    if asked.returns == "query":
        about |= _not_in_query(network)
    return content, about, {"difference": difference}


# What scores have that no inner product gives, by the model's attribute.
_BESIDE_QUERIES = {
    "repeat_bias": "repeat_bias, which adds to the scores of the history's own items",
    "cooccurrences": "cooccurrence_weight, which adds to the scores of what followed the history's items",
}


def _not_in_query(network: Any) -> dict[str, str]:
    """What a description says of the scores that a query and the item vectors lack; nothing where they lack none."""
    beside = [said for name, said in _BESIDE_QUERIES.items() if getattr(network, name, None) is not None]
    return {"not_in_query": "; ".join(beside)} if beside else {}


def _checked_output(checkpoint_file: str | Path, output: str | Path | None, asked: _Asked) -> Path:
    """The file to write, which is none that is read."""
    path = _beside(checkpoint_file, SUFFIXES[asked.format]) if output is None else output
    read = (checkpoint_file, asked.input, *asked.results)
    files.check_writable(path, "output", read, regular=True)
    files.check_writable(f"{path}.json", "the file of item ids,", read, regular=True)
    if asked.format == "safetensors":
        files.check_writable(f"{path}.md", "the card,", read, regular=True)
    return Path(path)


def _beside(checkpoint_file: str | Path, suffix: str) -> Path:
    try:
        return Path(checkpoint_file).with_suffix(suffix)
    except ValueError:
        raise UserError(f"checkpoint '{checkpoint_file}' is a folder: name the .pth file in it") from None


def _serialised(program: Program, recommender: Recommender, format: str) -> tuple[bytes, float]:
    """The serialised program and how far what it gives on other shapes than the traced ones is from ours."""
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
    difference = _largest_difference(run, example, program, recommender.network, longest)
    if not difference <= TOLERANCE:
        raise UserError(
            f"the {format} program of model '{recommender.config['model']}' gives what differs by {difference:.1e} of "
            f"the largest from PyTorch's {program.output}, so that nothing was written: try another --format"
        )
    return content, difference


def _torch_program(exported: Any) -> tuple[bytes, Callable[[dict[str, Tensor]], Tensor]]:
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    module = exported.module()
    return buffer.getvalue(), lambda inputs: module(**inputs)


def _onnx_program(exported: Any, program: Program) -> tuple[bytes, Callable[[dict[str, Tensor]], Tensor]]:
    runtime = _library("onnxruntime", "onnx")
    names: dict[str, Any] = {"input_names": program.inputs, "output_names": [program.output]}
    with _quiet():
        # Runtimes optimise a program when they load it; doing it here takes most of an export's time.
        made = torch.onnx.export(exported, dynamo=True, optimize=False, verbose=False, **names)
    assert made is not None
    content = made.model_proto.SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, Tensor]) -> Tensor:
        (found,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        return torch.from_numpy(found)

    return content, run


@torch.no_grad()
def _largest_difference(
    run: Callable[[dict[str, Tensor]], Tensor],
    example: Callable[[int, int], dict[str, Tensor]],
    program: Program,
    network: Any,
    longest: int,
) -> float:
    """Of what a program gives from ``full_sort_predict`` or ``queries``, over the largest number of that."""
    of_model, first = (network.queries, 0) if program.output == "query" else (network.full_sort_predict, 1)
    errors = []
    for n, length in ((1, 2), (7, longest)):
        inputs = example(n, length)
        lengths = (inputs["item_seq"] != 0).sum(dim=1)
        expected = of_model({network.ITEM_SEQ: inputs["item_seq"], network.ITEM_SEQ_LEN: lengths})[:, first:]
        errors.append((run(inputs)[:, first:] - expected).abs().max() / expected.abs().max())
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
        raise cannot_import(f"--format={format}", error, "[export]") from None
