"""A whole request as a server runs it: the prompt, then one token after another on the cache that it has written."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from estimator.config import TransformerConfig
from estimator.ort_session import load_runtime, make_inputs, past_names, present_names
from estimator.workload import Workload

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["middle_past_length", "request_call"]


def middle_past_length(workload: Workload) -> int:
    """Tokens in the cache at the middle one of the request's decode steps.

    A step's time grows linearly with the cache, so that so many middle steps take as long as all of them.
    """
    return workload.prompt_length + (workload.generated_length - 1) // 2


def request_call(
    session: onnxruntime.InferenceSession, config: TransformerConfig, workload: Workload, *, device: str, seed: int
) -> Callable[[], None]:
    """A call that runs the prompt and `generated_length` steps; each reads the cache that the last one wrote.

    The generated tokens are drawn beforehand: choosing them from the logits is not part of the model's time.
    """
    prompt = make_inputs(config, batch_size=workload.batch_size, sequence_length=workload.prompt_length, seed=seed)
    first = _on_device(prompt, device)
    steps = [_on_device(inputs, device) for inputs in _steps(config, workload, seed)]
    outputs = [output.name for output in session.get_outputs()]
    pairs = [
        pair for i in range(config.num_hidden_layers) for pair in zip(present_names(i), past_names(i), strict=True)
    ]
    sources = [(past, outputs.index(present)) for present, past in pairs]

    def run(inputs: dict[str, Any]) -> list[Any]:
        binding = session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name in outputs:
            binding.bind_output(name, device)
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        written: list[Any] = binding.get_outputs()
        return written

    def call() -> None:
        written = run(first)
        for step in steps:
            written = run(step | {past: written[index] for past, index in sources})

    return call


def _steps(config: TransformerConfig, workload: Workload, seed: int) -> list[dict[str, Any]]:
    """The token and its position of each step, without the cache."""
    shape = (workload.batch_size, 1)
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, (workload.generated_length, *shape))
    given = ("input_ids", "position_ids", "token_type_ids")
    like = make_inputs(config, batch_size=workload.batch_size, sequence_length=1)
    steps = []
    for index, tokens in enumerate(ids):
        position = np.full(shape, workload.prompt_length + index, np.int64)
        values = {**like, "input_ids": tokens, "position_ids": position}
        steps.append({name: values[name] for name in given if name in like})
    return steps


def _on_device(inputs: dict[str, Any], device: str) -> dict[str, Any]:
    runtime = load_runtime()
    return {name: runtime.OrtValue.ortvalue_from_numpy(array, device, 0) for name, array in inputs.items()}
