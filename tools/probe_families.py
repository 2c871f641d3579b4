"""Adds `sizeless` to estimator/readers/families.json by probing: run it by hand after tools/renew_families.py.

    python tools/probe_families.py [MODEL_TYPE ...]

A field is sizeless if no value tried changes the shapes of a model on the meta device. All candidate fields are changed
at once, and the smallest set of changes that moves a shape (or does not build) is taken out until none does, so fields
that matter only together are found too. This happens from three starting points: the defaults with few layers, the same
with every boolean flipped and every optional size set as far as it builds, and the defaults in full depth, as some
layers come late. Fields whose name speaks of a size, of attention windows, of layers or of biases are no candidates.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
import time
import typing
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from types import FrameType
from typing import Any

import torch
import transformers
from renew_families import DATA, config_classes, write
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights

# Never sizeless, whatever the probe says: sizes, and what the reader must see for FLOPs, KV cache or heads.
NEVER = re.compile(
    r"size|dim|num_|layers?(?!_?norm|_?drop|_?scale_init)|expert|rank|width|vocab|position|window|head|depth|channel|kernel"
    r"|stride|patch|group|^n_|_n$|^d_|length|pattern|types?$|cross|decoder$|tie_|top_?k$|per_tok|capacity|sparse|sparsity"
    r"|step|freq|interval|every|offset|period|first_|start$|end$|skip|replace|block|chunk|cache_|pool|tokens?$|max_|min_"
    r"|sliding|local|global|causal|bidirectional|expand|ratio|share|quant|adapter|config$|labels|stage|frames?$|bins|per_|bias|mlp(?!_dropout)|conv|qk_|double|moe_k$|pos_emb|embedding_fraction|mode$|out_norm|mem_len"
    r"|mtp|rotary_value|parallel|rel_extent|gated|memory"
    r"|lang_emb|sampling_rate|padding$|reduction|context|separate_cls|truncate|strategy|_len$|overlap|prun|^task_|post_norm$"
    r"|^mask_.*prob|spec_augment|reference|router_type"
)
# Names that NEVER would catch by a word in them, and that are none of these.
TOKENS = re.compile(
    r"token_(id|index)s?$|suppress_tokens$|dropout|_pdrop$|_drop$|_eps(ilon)?$|^initializer|^init_|_init(ial)?$"
)
ACTIVATION = re.compile(r"act$|act_fn$|activation(_function|_fn)?$")
ACTIVATIONS = ("relu", "silu", "gelu")
ROPES = ({"rope_type": "default", "rope_theta": 5e5}, {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
USUAL = {
    "head_dim": 64,
    "vocab_size": 256,
    "num_key_value_heads": 2,
    "layer_types": ["full_attention"] * 3,
    "pad_token_id": 0,
}
HARMLESS = ("rope_parameters", "use_cache")
FEW_LAYERS = re.compile(r"^(num_(hidden_)?layers|n_layers?|(num_)?(en|de)coder_layers|num_(en|de)coder_layers)$")
BUILD_S, FAMILY_S, MODELS = 4, 20, 4
FIRST_TASKS = ("causal_lm", "masked_lm", "seq2seq_lm", "image_text_to_text", "speech_seq2seq", "base")

Changes = dict[str, Any]
Build = Callable[[Changes], Any]


def main(chosen: list[str]) -> None:
    """Probes the chosen families, or all, and writes the file as it goes."""
    _quiet()
    rows = json.loads(DATA.read_text(encoding="utf-8"))["families"]
    configs = config_classes()
    failures = {}
    for count, model_type in enumerate(chosen or _in_order(rows), 1):
        found, why = probe(model_type, rows, configs)
        rows[model_type].pop("sizeless", None)
        if found:
            rows[model_type]["sizeless"] = " ".join(found)
        if why:
            failures[model_type] = why
        if count % 40 == 0:
            write(rows)
    write(rows)
    for model_type, why in sorted(failures.items()):
        sys.stderr.write(f"not probed: {model_type}: {why}\n")


def _in_order(rows: dict[str, Any]) -> list[str]:
    listed = {m: set(row.get("classes", ())) for m, row in rows.items()}
    return sorted(rows, key=lambda m: (min([FIRST_TASKS.index(t) for t in listed[m] & set(FIRST_TASKS)] or [9]), m))


def probe(
    model_type: str, rows: dict[str, Any], configs: dict[str, type[PreTrainedConfig]]
) -> tuple[list[str], str | None]:
    """The sizeless fields of a family, sorted, and why there is no answer (or only a partial one)."""
    config_class = configs[model_type]
    deadline = time.monotonic() + FAMILY_S
    few, filled = _few_layers(config_class), _unset_filled(config_class)
    build, start, why = _first_that_builds(_builders(model_type, rows, configs), (few, {}, few | filled))
    if build is None:
        return [], why
    starts = (start, _everything_on(build, config_class, start))
    cleared = [_cleared(build, config_class, start, deadline) for start in starts]
    deep = {name: value for name, value in start.items() if name in filled}
    cleared.append(_cleared_in_depth(build, config_class, deep, cleared[0] & cleared[1], deadline))
    if time.monotonic() > deadline:
        return [], "ran out of time"
    return sorted(set.intersection(*cleared)), None


def _first_that_builds(builders: list[Build], starts: tuple[Changes, ...]) -> tuple[Build | None, Changes, str | None]:
    """All the builders that take the first start that any takes, as one; that start; why the first builder refused."""
    why = "no model class of its own and none that nests it"
    for start in starts:
        works = [build for build in builders if _signature(build, start) is not None]
        if works:
            return partial(_each, works[:MODELS]), start, None
    return None, {}, _why_not(builders[0], starts[0]) if builders else why


def _each(builders: list[Build], changes: Changes) -> list[Any]:
    return [build(changes) for build in builders]


def _unset_filled(config_class: type[PreTrainedConfig]) -> Changes:
    """Plausible values of sizes that some configurations declare as null and cannot do without."""
    return {f.name: USUAL[f.name] for f in fields(config_class) if f.name in USUAL and f.default is None}


def _cleared_in_depth(
    builder: Build, config_class: type[PreTrainedConfig], start: Changes, names: set[str], deadline: float
) -> set[str]:
    """Those of the names that move nothing in full depth; where that is not built in time, the plainest."""
    if _signature(builder, start) is None:
        return {name for name in names if TOKENS.search(name) or ACTIVATION.search(name) or name in HARMLESS}
    return _cleared(builder, config_class, start, deadline, names)


def _cleared(
    builder: Build, config_class: type[PreTrainedConfig], start: Changes, deadline: float, only: set[str] | None = None
) -> set[str]:
    """Fields of which at least one other value builds and none that builds moves a shape, all changed together."""
    base = _signature(builder, start)
    values = {name: tries for name, tries in _candidates(config_class, start) if only is None or name in only}
    cleared: set[str] = set()
    moving: set[str] = set()
    for turn in range(max(map(len, values.values()), default=0)):
        changes = {name: tries[turn] for name, tries in values.items() if turn < len(tries) and name not in moving}
        while changes and time.monotonic() < deadline:
            guilty = _smallest(lambda some: _signature(builder, start | some) == base, changes)
            if not guilty:
                cleared |= changes.keys()
                break
            if _signature(builder, start | {name: changes[name] for name in guilty}) is not None:
                moving |= set(guilty)
            for name in guilty:
                del changes[name]
    return cleared - moving


def _smallest(ok: Callable[[Changes], bool], changes: Changes) -> list[str]:
    """Names of a smallest set of changes that is not ok; none if all of them together are."""
    if ok(changes):
        return []
    needed: list[str] = []
    names = list(changes)
    while needed == [] or ok({name: changes[name] for name in needed}):
        low, high = 0, len(names)
        while high - low > 1:
            middle = (low + high) // 2
            if ok({name: changes[name] for name in (*needed, *names[:middle])}):
                low = middle
            else:
                high = middle
        needed.append(names[high - 1])
        names = names[: high - 1]
        if not names:
            break
    return needed


def _everything_on(builder: Build, config_class: type[PreTrainedConfig], start: Changes) -> Changes:
    """The start with booleans flipped and unset or zero sizes set, but for the smallest sets that do not build."""
    changes: Changes = {}
    for field in fields(config_class):
        value = start.get(field.name, field.default)
        if field.name in _shared() or TOKENS.search(field.name):
            continue
        if isinstance(value, bool):
            changes[field.name] = not value
        elif (value is None or value == 0) and int in _kinds(config_class, field.name):
            changes[field.name] = 2
    while bad := _smallest(lambda some: _signature(builder, start | some) is not None, changes):
        for name in bad:
            del changes[name]
    return start | changes


def _candidates(config_class: type[PreTrainedConfig], start: Changes) -> Iterator[tuple[str, list[Any]]]:
    for field in fields(config_class):
        name = field.name
        if name in _shared() or name in config_class.sub_configs_defaults:
            continue
        if NEVER.search(name) and not TOKENS.search(name):
            continue
        tries = _other_values(name, start.get(name, field.default), _kinds(config_class, name))
        if tries:
            yield name, tries


def _other_values(name: str, value: Any, kinds: tuple[Any, ...]) -> list[Any]:
    if name == "rope_parameters":
        return list(ROPES)
    literals = [option for kind in kinds if isinstance(kind, tuple) for option in kind if option != value]
    if literals:
        return literals
    if bool in kinds and (isinstance(value, bool) or value is None):
        return [not value]
    none = [None] if type(None) in kinds and value is not None else []
    if (isinstance(value, float) or value is None) and float in kinds:
        return [option for option in (0.25, 1.0, 0.0) if option != value] + none
    if isinstance(value, int) or (value is None and int in kinds):
        return [option for option in (1, 2, 7) if option != value] + none
    if ACTIVATION.search(name) and (isinstance(value, str) or value is None):
        return [option for option in ACTIVATIONS if option != value]
    return []


def _kinds(config_class: type[PreTrainedConfig], name: str) -> tuple[Any, ...]:
    """The types that a field's annotation lists; the options of a Literal as one tuple."""
    try:
        hint = typing.get_type_hints(config_class)[name]
    except Exception:
        hint = next(field.type for field in fields(config_class) if field.name == name)
    parts = typing.get_args(hint) if typing.get_origin(hint) is not typing.Literal else (hint,)
    return tuple(typing.get_args(p) if typing.get_origin(p) is typing.Literal else p for p in parts or (hint,))


def _shared() -> set[str]:
    return {field.name for field in fields(PreTrainedConfig)}


def _few_layers(config_class: type[PreTrainedConfig]) -> Changes:
    """Values of fields, with few layers here and in nested configs."""
    few: Changes = {f.name: 3 for f in fields(config_class) if FEW_LAYERS.search(f.name) and isinstance(f.default, int)}
    for name, spec in config_class.sub_configs_defaults.items():
        nested = spec.config_class
        if not issubclass(nested, PreTrainedConfig):
            nested = transformers.CONFIG_MAPPING.get(spec.model_type) if spec.model_type in _known() else None
        if nested is not None:
            few[name] = {"model_type": spec.model_type} | spec.init_kwargs | _few_layers(nested)
    return few


def _known() -> set[str]:
    return set(transformers.CONFIG_MAPPING.keys())


def _builders(model_type: str, rows: dict[str, Any], configs: dict[str, type[PreTrainedConfig]]) -> list[Build]:
    """For each class of the family, or else of families that nest it: values of fields -> configuration and model."""
    own = _classes(rows[model_type])
    if own:
        return [partial(_plain, configs[model_type], name) for name in own]
    return [
        partial(_nested, configs[outer], field, configs[model_type], name)
        for outer, row in rows.items()
        for field, nested in row.get("sub_configs", {}).items()
        for name in _classes(row)
        if nested == model_type
    ]


def _plain(config_class: type[PreTrainedConfig], name: str, changes: Changes) -> tuple[PreTrainedConfig, Any]:
    return _model(config_class(**changes), name)


def _nested(
    outer: type[PreTrainedConfig], field: str, inner: type[PreTrainedConfig], name: str, changes: Changes
) -> tuple[PreTrainedConfig, Any]:
    config = outer(**(_few_layers(outer) | {field: inner(**changes)}))
    return getattr(config, field), _model(config, name)[1]


def _classes(row: dict[str, Any]) -> list[str]:
    names = [name for group in row.get("classes", {}).values() for name in group.split() if hasattr(transformers, name)]
    first = row.get("default_class")
    return sorted(names, key=lambda name: (name != first, "For" in name, name))


def _model(config: PreTrainedConfig, name: str) -> tuple[PreTrainedConfig, Any]:
    with torch.device("meta"), no_init_weights():
        return config, getattr(transformers, name)(config)


def _signature(builder: Build, changes: Changes) -> Any:
    """Shapes of all that is stored, how much of it is shared, and every resolved field that is never sizeless."""
    try:
        return _shapes(builder, changes)
    except Exception:
        return None


def _why_not(builder: Build, changes: Changes) -> str | None:
    try:
        _shapes(builder, changes)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
    return None


def _shapes(builder: Build, changes: Changes) -> Any:
    with _limit(BUILD_S):
        built = builder({n: dict(v) if isinstance(v, dict) else v for n, v in changes.items()})
        return [_shapes_of(config, model) for config, model in (built if isinstance(built, list) else [built])]


def _shapes_of(config: PreTrainedConfig, model: Any) -> Any:
    stored = sorted((name, tuple(tensor.shape)) for name, tensor in model.state_dict().items())
    nested = type(config).sub_configs_defaults
    names = [n for n in vars(config) if NEVER.search(n) and not TOKENS.search(n) and n[0] != "_" and n not in nested]
    return stored, sum(p.numel() for p in model.parameters()), {name: repr(getattr(config, name)) for name in names}


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {seconds} s to build")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _quiet() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)


if __name__ == "__main__":
    main(sys.argv[1:])
