"""Bodies of requests and responses. Defaults are those of `StudySpec`, so of the command line."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from estimator.weight_types import BUILD_DTYPES
from estimator.workload import (
    ATTENTIONS,
    FLOAT_DTYPES,
    KV_DTYPES,
    KV_SCALES,
    LOGITS,
    RUNTIME_NAMES,
    WEIGHT_DTYPES,
    Workload,
)
from nas.objectives import OBJECTIVES, parse_constraint
from nas.space import PRESETS
from nas.spec import DEVICES, EVALUATORS, SAMPLERS, QualitySettings, StudySpec

__all__ = [
    "EstimateRequest",
    "FigureBody",
    "ParetoBody",
    "StudyBody",
    "StudyPage",
    "StudyRequest",
    "TrialBody",
    "TrialPage",
    "TrialSummary",
]

# The limits that have a field of their own, as the command line has an option: their objective.
_LIMITS = {
    "max_latency": "latency",
    "max_prefill_latency": "prefill_latency_s",
    "max_memory": "peak_memory_bytes",
    "max_file_size": "file_bytes",
    "max_params": "params",
}


def _defaults(record: type) -> dict[str, Any]:
    return {entry.name: entry.default for entry in fields(record)}


_STUDY, _WORKLOAD, _QUALITY = _defaults(StudySpec), _defaults(Workload), _defaults(QualitySettings)


def _choice(*allowed: str) -> tuple[AfterValidator, Any]:
    """One of these words; the API's description lists them."""

    def check(word: str) -> str:
        if word not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return word

    return AfterValidator(check), Field(json_schema_extra={"enum": list(allowed)})


def _check_data(path: str) -> str:
    if not Path(path).is_absolute():
        raise ValueError("must be an absolute path on the service's machine")
    try:
        Path(path).stat()
    except (OSError, ValueError) as error:  # a path may hold a NUL
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"cannot be read on the service's machine: {reason}") from None
    if not os.access(path, os.R_OK):  # opening it could block for ever
        raise ValueError("cannot be read on the service's machine: Permission denied")
    return path


def _check_addressable(name: str) -> str:
    if "/" in name or name in (".", ".."):
        raise ValueError("must hold no / and be neither . nor .., since it is part of an address")
    return name


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


Size = Annotated[int, Field(ge=1, lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Quantity = Annotated[
    str | float, Field(description="a text with its unit, or a number in base units", examples=["20ms", 0.02])
]
DataPath = Annotated[str, AfterValidator(_check_data)]
StudyName = Annotated[str, AfterValidator(_check_addressable)]
WeightType = Annotated[str, *_choice(*WEIGHT_DTYPES)]
BuiltType = Annotated[str, *_choice(*BUILD_DTYPES)]
FloatType = Annotated[str, *_choice(*FLOAT_DTYPES)]
CacheType = Annotated[str, *_choice(*KV_DTYPES)]


class ConstraintRequest(_Request):
    """A figure that may be at most `limit`."""

    objective: str
    limit: Quantity


class WorkloadRequest(_Request):
    """What a candidate is measured on."""

    batch_size: Size = _WORKLOAD["batch_size"]
    prompt_length: Size = _WORKLOAD["prompt_length"]
    generated_length: Count = _WORKLOAD["generated_length"]
    weight_dtype: BuiltType = _WORKLOAD["weight_dtype"]
    activation_dtype: FloatType = _WORKLOAD["activation_dtype"]
    kv_cache_dtype: CacheType = _WORKLOAD["kv_cache_dtype"]


class QualityRequest(_Request):
    """How a candidate's quality is found. A module of the user's own is for the command line alone."""

    evaluator: Annotated[str, *_choice(*EVALUATORS)] = _QUALITY["evaluator"]
    data: list[DataPath] = Field(
        default_factory=list,
        description="absolute paths on the service's machine; empty: the source of Python's standard library",
    )
    tokens: Size | None = _QUALITY["tokens"]
    seconds: Annotated[float, Field(gt=0)] | None = _QUALITY["seconds"]
    sequence_length: Size = _QUALITY["sequence_length"]
    batch_size: Size = _QUALITY["batch_size"]
    learning_rate: Annotated[float, Field(gt=0)] = _QUALITY["learning_rate"]
    heldout_tokens: Size = _QUALITY["heldout_tokens"]
    seed: Count = _QUALITY["seed"]


class StudyRequest(_Request):
    """A search to run. The space alone is a complete request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"space": "decoder-nano", "trials": 6},
                {
                    "space": "decoder-small",
                    "trials": 40,
                    "name": "for the kiosk",
                    "objectives": ["bits_per_byte", "latency", "memory"],
                    "max_latency": "20ms",
                    "max_params": "5M",
                    "sampler": "nsga2",
                    "workload": {"prompt_length": 256, "weight_dtype": "int8"},
                    "quality": {"seconds": 30.0},
                },
            ]
        }
    )

    space: str | dict[str, Any] = Field(
        description=f"{', '.join(PRESETS)}, or a table with name, base and choices as `nas space NAME --json` prints it"
    )
    trials: Size = Field(_STUDY["num_trials"], description="candidates to evaluate")
    name: StudyName | None = Field(None, max_length=100, description="made up from the space's name when left out")
    objectives: list[str] = Field(
        default_factory=list,
        max_length=len(OBJECTIVES),
        description=f"names among {', '.join(OBJECTIVES)}; empty: bits_per_byte and the latency that dominates",
    )
    constraints: list[ConstraintRequest] = Field(default_factory=list, max_length=len(OBJECTIVES))
    max_latency: Quantity | None = None
    max_prefill_latency: Quantity | None = None
    max_memory: Quantity | None = None
    max_file_size: Quantity | None = None
    max_params: Quantity | None = None
    sampler: Annotated[str, *_choice(*SAMPLERS)] = _STUDY["sampler"]
    seed: Count = _STUDY["seed"]
    device: Annotated[str, *_choice(*DEVICES)] = _STUDY["device"]
    num_threads: Size | None = _STUDY["num_threads"]
    trial_time_limit_s: Annotated[float, Field(gt=0)] = _STUDY["trial_time_limit_s"]
    workload: WorkloadRequest | None = None
    quality: QualityRequest | None = None

    def to_spec(self) -> StudySpec:
        """The search that was asked for.

        Raises:
            UsageError: a part of it is unknown or impossible.
        """
        own_fields = {"name", "trials", "constraints", *_LIMITS}
        given = self.model_dump(exclude_unset=True, exclude_none=True, exclude=own_fields)
        spec = StudySpec.from_dict({**given, "num_trials": self.trials})
        limits = [(constraint.objective, constraint.limit) for constraint in self.constraints]
        limits += [(objective, getattr(self, name)) for name, objective in _LIMITS.items()]
        return replace(
            spec,
            constraints=tuple(
                parse_constraint(name, limit, spec.space.architecture) for name, limit in limits if limit is not None
            ),
        )


class EstimateRequest(_Request):
    """A model to size: its config.json, or the name of a bundled one."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "gpt2", "device": "t4"},
                {"model": "llama-3.1-8b", "weight_dtype": "int4", "prompt_length": 4096, "generated_length": 256},
                {"config": {"model_type": "llama", "hidden_size": 256, "num_hidden_layers": 4}},
            ]
        }
    )

    model: str | None = Field(None, max_length=100, description="name of a bundled model", examples=["gpt2"])
    config: dict[str, Any] | None = Field(None, description="content of a Hugging Face config.json, or our own config")
    batch_size: Size = _WORKLOAD["batch_size"]
    prompt_length: Size = _WORKLOAD["prompt_length"]
    generated_length: Count = _WORKLOAD["generated_length"]
    num_images: Count = Field(0, description="images per sequence, their tokens among those of the prompt")
    weight_dtype: WeightType | None = Field(
        None, description="as the checkpoint stores them, by its config, when left out, else fp32"
    )
    group_size: str | None = Field(
        None, max_length=20, description="weights that share a scale: a number of inputs, channel, tensor, or 128x128"
    )
    zero_points: bool = Field(False, description="int8 and int4 weights have them")
    kv_cache_dtype: CacheType | None = Field(None, description="that of the activations when left out")
    kv_scales: Annotated[str, *_choice(*KV_SCALES)] | None = Field(
        None, description="a scale for each head, or for each token of it: of fp8 head when left out, else token"
    )
    runtime: Annotated[str, *_choice(*RUNTIME_NAMES)] | None = Field(
        None, description="onnxruntime-cpu when left out, and pytorch-cuda on an NVIDIA GPU"
    )
    attention: Annotated[str, *_choice(*ATTENTIONS)] | None = Field(
        None, description="fused stores no scores; as the runtime has it when left out"
    )
    logits: Annotated[str, *_choice(*LOGITS)] = Field("all", description="of all positions of a prompt, or the last")
    device: str | None = Field(None, max_length=100, description="a name from `estimator devices`", examples=["t4"])

    @model_validator(mode="after")
    def _check_source(self) -> EstimateRequest:
        if (self.model is None) == (self.config is None):
            raise ValueError("give either model or config")
        return self


class FigureBody(BaseModel):
    """A value in base units (s, bytes, FLOPs, bits, a count) with its interval and where it comes from."""

    value: float
    low: float | None
    high: float | None
    origin: str = Field(examples=["measured"])


class TrialSummary(BaseModel):
    """One candidate, without samples and history."""

    number: int
    state: str = Field(description="running, complete, pruned or fail")
    params: dict[str, Any] = Field(description="the raw choices of the search space")
    config: dict[str, Any]
    architecture_hash: str
    figures: dict[str, FigureBody] = Field(description="the latest figure of each objective")
    created_at: datetime
    finished_at: datetime | None
    error_type: str | None
    error_text: str | None = Field(description="why it failed or was pruned")
    duplicate_of: int | None = Field(description="the trial whose results it shares: nothing was paid for this one")


class TrialBody(TrialSummary):
    """One candidate with everything known of it."""

    observations: list[dict[str, Any]]
    artifact: dict[str, Any] | None = Field(description="the ONNX file that was scored and measured")
    measurement: dict[str, Any] | None = Field(description="samples, protocol, device and warnings")
    quality: dict[str, Any] | None


class StudyBody(BaseModel):
    """A search and where it stands."""

    id: str
    name: str
    state: str = Field(description="new, running, stopped (`nas resume` goes on with it), finished or fail")
    error: str | None = Field(description="why the search could not run, if it could not")
    created_at: datetime
    revision: int = Field(description="grows with every change of the study")
    num_trials: int = Field(description="the budget: candidates to evaluate")
    trials: dict[str, int] = Field(
        description="number of trials by state; those that repeat another one are under `repeated` alone"
    )
    spec: dict[str, Any] = Field(description="everything that was asked for, defaults filled in")


class StudyPage(BaseModel):
    """Studies, the newest first."""

    studies: list[StudyBody]
    next: str | None = Field(description="address of the next page; null on the last one")


class TrialPage(BaseModel):
    """Trials of a study by number."""

    trials: list[TrialSummary]
    next: str | None = Field(description="address of the next page; null on the last one")


class ParetoPoint(BaseModel):
    """A trial that no other one beats in every objective."""

    trial: int
    config: dict[str, Any]
    architecture_hash: str
    values: dict[str, FigureBody] = Field(description="the objectives")
    figures: dict[str, FigureBody] = Field(description="everything that was observed")


class ParetoBody(BaseModel):
    """The front of a study, the best in the first objective first; `nas pareto STUDY --json` prints the same."""

    study: str
    study_id: str
    objectives: list[dict[str, str]]
    points: list[ParetoPoint]
    reference: dict[str, float] = Field(description="the corner from which the hypervolume is measured")
    hypervolume: float
