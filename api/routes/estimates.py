"""What a model needs, from its config alone."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body

from api.problems import declare
from api.schemas import EstimateRequest
from estimator.readers.source import ModelSource, read_bundled, source_of_values
from estimator.sized_source import size_document, size_source

__all__ = ["router"]

router = APIRouter(prefix="/v1/estimates", tags=["estimates"])


@router.post(
    "",
    operation_id="createEstimate",
    summary="Size a model",
    response_description="the document that `estimator size --json` prints",
    responses=declare("body-too-large", "not-json"),
)
def create_estimate(request: Annotated[EstimateRequest, Body()]) -> dict[str, Any]:
    """Parameters, memory and FLOPs; with a device, whether it fits and the bound on its time. Nothing is stored."""
    source = _source(request)
    result = size_source(
        source,
        batch_size=request.batch_size,
        prompt_length=request.prompt_length,
        generated_length=request.generated_length,
        num_images=request.num_images,
        weight_dtype=request.weight_dtype,
        group_size=request.group_size,
        zero_points=request.zero_points,
        kv_cache_dtype=request.kv_cache_dtype,
        kv_scales=request.kv_scales,
        runtime=request.runtime,
        attention=request.attention,
        logits=request.logits,
        device=request.device,
    )
    return size_document(result, source)


def _source(request: EstimateRequest) -> ModelSource:
    """A bundled model by name, never a path: a client must not read this machine's files."""
    if request.config is not None:
        return source_of_values(request.config, "config", may_import_torch=False)
    assert request.model is not None  # the schema sees to it that one of the two is given
    return read_bundled(request.model)
