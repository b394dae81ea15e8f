"""What the service is asked and answers, as its OpenAPI description tells: everything that is refused by its form."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator

from recbole_diffurec.inference.recommender import Recommender
from recbole_diffurec.models.base import DiffusionRecommender

MAX_HISTORIES, MAX_HISTORY, MAX_CANDIDATES, MAX_K = 256, 1000, 10_000, 1000
MAX_ID = 200  # characters of an item's id
MAX_NUMBER = 10**20  # as an id: all numbers of 64 bits; a float as well, which readers of the description may take
# Samples of one history, and how many of them may be drawn for MAX_HISTORIES; for more of them, how many histories.
MAX_SAMPLES, FEW_SAMPLES, FEW_HISTORIES = 100, 10, 25


EXACT = 2**53  # up to here, every whole number is a float


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 5.0 is an integer. A larger float may be another one than the client wrote."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT else value


WHOLE = BeforeValidator(_whole)  # after the bounds of a number, which its description would lose otherwise
ItemId = Annotated[
    Annotated[str, Field(max_length=MAX_ID)] | Annotated[int, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)], WHOLE
]
History = Annotated[list[ItemId], Field(max_length=MAX_HISTORY, fail_fast=True)]


class RecommendRequest(BaseModel):
    """Histories of item ids, the oldest item first, and what is wanted for each."""

    model_config = ConfigDict(extra="forbid", strict=True)

    histories: list[History] = Field(min_length=1, max_length=MAX_HISTORIES, examples=[[["50", "172", "1"]]])
    k: Annotated[int, Field(ge=1, le=MAX_K), WHOLE] = Field(10, description="length of the lists")
    exclude_seen: bool = Field(False, description="leave out the items of the history itself")
    candidates: Annotated[list[ItemId], Field(min_length=1, max_length=MAX_CANDIDATES, fail_fast=True)] | None = Field(
        None, description="recommend these items alone"
    )


def _samples(most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": 1, "maximum": most}


class SampledRequest(RecommendRequest):
    """Histories of item ids, the oldest item first, and what is wanted for each."""

    # What ``_fits_together`` asks for; each alternative says all of its fields, for readers that do not combine them.
    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                {
                    "anyOf": [
                        {"properties": {"histories": {"minItems": 1, "maxItems": FEW_HISTORIES}}},
                        {"properties": {"samples": {"anyOf": [_samples(FEW_SAMPLES), {"type": "null"}]}}},
                    ]
                },
                {
                    "anyOf": [
                        {"properties": {"diversity": {"const": 0}}},
                        {"properties": {"samples": _samples(MAX_SAMPLES)}, "required": ["samples"]},
                    ]
                },
            ]
        }
    )

    samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES), WHOLE] | None = Field(
        None, description="reconstructions drawn for each history"
    )
    diversity: float = Field(0.0, ge=0, le=1, description="spread the lists over the samples' own lists")

    @model_validator(mode="after")
    def _fits_together(self) -> SampledRequest:
        if (self.samples or 1) > FEW_SAMPLES and len(self.histories) > FEW_HISTORIES:
            raise ValueError(f"more than {FEW_SAMPLES} samples are drawn for at most {FEW_HISTORIES} histories")
        if self.diversity and self.samples is None:
            raise ValueError("diversity spreads a list over samples: give samples with it")
        return self


class NextRequest(RecommendRequest):
    """Histories of item ids, the oldest item first, and what is wanted of the lists that may follow each."""

    # What ``_fits_together`` asks for.
    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"histories": {"minItems": 1, "maxItems": FEW_HISTORIES}}},
                {"properties": {"samples": _samples(FEW_SAMPLES)}, "required": ["samples"]},
            ]
        }
    )

    samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES), WHOLE] = Field(20, description="lists drawn for each history")
    k: Annotated[int, Field(ge=1, le=MAX_SAMPLES), WHOLE] = Field(
        20, description="how many different ones of them are given, the most probable first"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> NextRequest:
        if self.samples > FEW_SAMPLES and len(self.histories) > FEW_HISTORIES:
            raise ValueError(f"more than {FEW_SAMPLES} samples are drawn for at most {FEW_HISTORIES} histories")
        return self


def most_steps(recommender: Recommender) -> int:
    """The reverse steps that a request may ask for; 1 where there are none to choose from."""
    network = recommender.network
    if not isinstance(network, DiffusionRecommender):
        return 1
    return network.with_sampling_steps(network.n_steps).sampling_steps  # one, whatever is asked, from the last item


def request_for(recommender: Recommender) -> type[RecommendRequest]:
    """The form of requests to a model: nothing that it does not do."""
    base: type[RecommendRequest] = RecommendRequest
    if isinstance(recommender.network, DiffusionRecommender) and "samples" not in recommender.config.spec.cannot:
        base = SampledRequest
    more = _of_the_model(recommender)
    return create_model("RecommendRequest", __base__=base, __doc__=base.__doc__, **more) if more else base


def next_request_for(n_slots: int, recommender: Recommender) -> type[NextRequest]:
    """The form of requests for lists of items that are drawn together, to a model of ``n_slots`` of them."""
    more = _of_the_model(recommender)
    more["next"] = Annotated[int, Field(ge=1, le=n_slots), WHOLE], Field(n_slots, description="items of a list")
    return create_model("NextRequest", __base__=NextRequest, __doc__=NextRequest.__doc__, **more)


def _of_the_model(recommender: Recommender) -> dict[str, Any]:
    """Fields of any request that the model has something to choose for."""
    more: dict[str, Any] = {}
    most = most_steps(recommender)
    if most > 1:
        steps = Annotated[int, Field(ge=1, le=most), WHOLE] | None
        more["sampling_steps"] = steps, Field(None, description="reverse steps; the service's own by default")
    names = recommender.about_items.names
    if names:
        name: Any = Literal[tuple(names)]
        fields = Annotated[list[name], Field(max_length=len(names), fail_fast=True)] | None
        more["fields"] = fields, Field(None, description="what to tell of each item, beside its id")
    return more


class RankedItem(BaseModel):
    """One place of a list."""

    item_id: str
    score: float
    frequency: float | None = Field(None, description="share of the samples with the item in their own top k")
    fields: dict[str, str | float | None] | None = Field(None, description="what was asked for of the item")


class RankedList(BaseModel):
    """The best items for one history; fewer than k where it leaves fewer."""

    items: list[RankedItem]
    popular: bool = Field(description="the history holds no item that the model knows; these are the most popular ones")
    unknown_items: int = Field(description="items of the history that the model does not know; they were skipped")
    spread: float | None = Field(None, description="how far the samples lie from their mean, relative to it")


class RecommendResponse(BaseModel):
    """A list for each history."""

    lists: list[RankedList] = Field(description="in the order of the histories")
    unknown_candidates: int | None = Field(None, description="candidates that the model does not know")


class JointItem(BaseModel):
    """One place of a list that was drawn as a whole."""

    item_id: str
    frequency: float = Field(description="share of the samples that hold the item")
    fields: dict[str, str | float | None] | None = Field(None, description="what was asked for of the item")


class JointList(BaseModel):
    """Items that may follow a history together, in their order; fewer than asked for where fewer are left."""

    items: list[JointItem]
    probability: float | None = Field(description="of the whole list, among all that there are; none of popular items")


class JointLists(BaseModel):
    """The lists for one history, the most probable first; none where no item is left."""

    lists: list[JointList]
    popular: bool = Field(description="the history holds no item that the model knows; the list is of the most popular")
    unknown_items: int = Field(description="items of the history that the model does not know; they were skipped")


class NextResponse(BaseModel):
    """Lists for each history."""

    histories: list[JointLists] = Field(description="in their order in the request")
    unknown_candidates: int | None = Field(None, description="candidates that the model does not know")


class ItemsQuery(BaseModel):
    """Which items are looked for."""

    model_config = ConfigDict(extra="forbid")

    query: str = Field("", max_length=MAX_ID, description="a part of the id")
    limit: int = Field(20, ge=1, le=100)


class SearchQuery(BaseModel):
    """Which items are looked for."""

    model_config = ConfigDict(extra="forbid")

    query: str = Field("", max_length=MAX_ID, description="a part of the id or the title, in any case and accents")
    limit: int = Field(20, ge=1, le=100)


class FoundItem(BaseModel):
    """An item that was looked for."""

    item_id: str
    title: str | None = Field(description="none where the model's data had no titles")


class Health(BaseModel):
    """That the service answers, and with what."""

    status: Literal["ok"]
    model: str
    dataset: str
    items: int
    max_length: int = Field(description="the most recent items of a history that the model reads")
    diffusion_steps: int | None = Field(description="none for a model of another kind")
    sampling_steps: int | None = Field(description="reverse steps of a request that names none")
    max_sampling_steps: int = Field(description="that a request may name; none may be named where it is 1")
    samples: bool = Field(description="whether requests may ask for samples and diversity")
    next: int | None = Field(description="items that a list of /next may have; none for a model of the next item alone")
    fields: list[str] = Field(description="what requests may ask for of each item")
    version: str


class Problem(BaseModel):
    """What is wrong with one value."""

    loc: list[str | int] = Field(description="where it is")
    msg: str


class Invalid(BaseModel):
    """A request of the wrong form: its first problems."""

    detail: list[Problem]


class Refused(BaseModel):
    """Why a request is not served, and what to do."""

    detail: str


REFUSALS = {
    400: "Asked of another host, no JSON, or not to be done by this model",
    408: "The body came too slowly",
    413: "The body is too large",
    415: "The body is said to be no JSON",
    422: "The request has the wrong form",
    500: "The service failed",
    503: "Too much is under way, or the service stops",
}


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What an operation answers beside 200, as FastAPI's ``responses`` want it; 400 and 500 all do."""
    refused = {status: {"model": Refused, "description": REFUSALS[status]} for status in (*statuses, 400, 500)}
    if 422 in refused:
        refused[422]["model"] = Invalid
    if 503 in refused:
        refused[503]["headers"] = {"Retry-After": {"description": "seconds to wait", "schema": {"type": "integer"}}}
    return dict(sorted(refused.items()))
