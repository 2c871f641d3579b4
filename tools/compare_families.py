"""Compares the torch-free reader with transformers on the meta device, family by family, field by field.

    python tools/compare_families.py [MODEL_TYPE ...] [--combinations 4] [--seed 0] [--shapes]

For each family and class: the declared defaults with few layers, every single field changed to other values, and random
combinations of changes that build. The reader must count every one exactly or refuse it; it reads once the whole config
as transformers writes it, and once only what differs from the defaults. Prints a line per family and what is wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import transformers
from probe_families import _few_layers, _limit, _quiet
from renew_families import config_classes
from transformers.initialization import no_init_weights

from estimator.errors import InputError
from estimator.network import stored_weights
from estimator.params import count_params
from estimator.readers.family_data import family_data, shared_defaults
from estimator.readers.networks import network_families, read_network

BUILD_S = 10
TASKS = ("causal_lm", "masked_lm", "seq2seq_lm")

Changes = dict[str, Any]


@dataclass(kw_only=True)
class Outcome:
    """How the variants of one family ended."""

    exact: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    unbuilt: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_types", nargs="*", help="default: all that have a reader")
    parser.add_argument("--combinations", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shapes", action="store_true", help="print what differs in the first wrong one")
    args = parser.parse_args()
    _quiet()
    print(f"seed {args.seed}")
    for model_type in args.model_types or network_families():
        outcome = compare(model_type, random.Random(f"{args.seed} {model_type}"), args.combinations, args.shapes)
        print(
            f"{model_type:<26} exact {outcome.exact:>4}  refused {sum(outcome.refused.values()):>3}  "
            f"wrong {len(outcome.wrong):>3}  not built {outcome.unbuilt}"
        )
        for text in outcome.wrong[:6]:
            print(f"    WRONG {text}")
        for text, times in outcome.refused.most_common(4):
            print(f"    refused {times}: {text}")


def compare(
    model_type: str, rng: random.Random, combinations: int, shapes: bool = False, *, singles: int | None = None
) -> Outcome:
    """Variants of every class of a family: all single changes (or so many), and combinations of those that build."""
    outcome = Outcome()
    data = family_data(model_type)
    assert data is not None, f"{model_type} is not in families.json"
    start = _few_layers(config_classes()[model_type])
    for hf_class in [name for name in data.classes if hasattr(transformers, name)]:
        is_main = hf_class == data.default_class
        changes = list(single_changes(model_type, start)) if is_main else []
        if singles is not None:
            changes = rng.sample(changes, min(len(changes), singles))
        check(model_type, hf_class, start, outcome, shapes)
        built = [some for some in changes if check(model_type, hf_class, start | some, outcome, shapes)]
        for _ in range(combinations if built else 0):
            mixed: Changes = {}
            for some in rng.sample(built, rng.randint(1, min(len(built), 6))):
                mixed |= some
            check(model_type, hf_class, start | mixed, outcome, shapes)
    return outcome


def check(model_type: str, hf_class: str, changes: Changes, outcome: Outcome, shapes: bool) -> bool:
    """Counts one variant both ways; True when transformers builds it."""
    try:
        with _limit(BUILD_S), torch.device("meta"), no_init_weights():
            config = config_classes()[model_type](**json.loads(json.dumps(changes)))
            model = getattr(transformers, hf_class)(config)
            model.tie_weights()
    except Exception:
        outcome.unbuilt += 1
        return False
    truth = sum(parameter.numel() for parameter in model.parameters())
    whole = json.loads(json.dumps(config.to_dict(), default=str)) | {"architectures": [hf_class]}
    for how, values in (
        ("whole", whole),
        ("sparse", changes | {"model_type": model_type, "architectures": [hf_class]}),
    ):
        try:
            network, _, _ = read_network(values)
        except InputError as error:
            outcome.refused[f"{hf_class} {how}: {error}"] += 1
            continue
        ours = count_params(network).total
        if ours == truth:
            outcome.exact += 1
            continue
        if shapes and not outcome.wrong:
            print_difference(model, network)
        outcome.wrong.append(f"{hf_class} {how}: {ours:,} instead of {truth:,} with {json.dumps(changes)[:300]}")
    return True


def single_changes(model_type: str, start: Changes) -> Iterator[Changes]:
    """Other values of one field at a time, also of nested configs, around the start."""
    for spec in fields(config_classes()[model_type]):
        if spec.name in shared_defaults() and spec.name != "id2label":
            continue
        value = start.get(spec.name, spec.default)
        for other in other_values(spec.name, value):
            yield {spec.name: other}
        if isinstance(value, dict) and value.get("model_type") in config_classes():
            for changes in single_changes(value["model_type"], value):
                yield {spec.name: value | changes}


def other_values(name: str, value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [v for v in (value * 2, value // 2, value + 1) if v > 0 and not name.endswith("_token_id")][:3]
    if value is None and not name.startswith(("_", "id2", "label2", "dtype", "transformers")):
        return [True, 2, 24]
    if isinstance(value, str):
        return ["relu"] if "act" in name else []
    if isinstance(value, float):
        return [value * 2]
    return []


def print_difference(model: Any, network: Any) -> None:
    theirs = Counter(tuple(p.shape) for p in model.parameters())
    ours: Counter[tuple[int, ...]] = Counter()
    for _, _, weight in stored_weights(network):
        ours[tuple(weight.shape)] += weight.copies
    names = {tuple(p.shape): n for n, p in reversed(list(model.named_parameters()))}
    for shape, times in sorted((theirs - ours).items()):
        print(f"    only in transformers: {times} x {shape} such as {names[shape]}")
    for shape, times in sorted((ours - theirs).items()):
        print(f"    only here: {times} x {shape}")


if __name__ == "__main__":
    sys.exit(main())
