"""Asks one of the compared tools about one model folder and prints its answer as one JSON document.

    python ask.py TOOL FOLDER

Runs in the tools' own virtual environment. FOLDER holds a config.json. Each function below takes the tool's own best
way from a local config.json to a parameter count and to the bytes of the key-value cache (4,096 tokens, bf16, batch 1),
and leaves the figures as the tool gives them. What a tool cannot answer is null, with the reason beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

NUM_TOKENS = 4096
BF16_BYTES = 2

Answer = tuple[Callable[[], float], Callable[[], float]]
"""How to get the parameter count, and how to get the cache's bytes; each may raise."""


def ask_llm_flops(folder: Path) -> Answer:
    """The mapping that its hub look-up applies to a downloaded config.json."""
    from llmflops.memory import kv_cache_bytes, parameter_count
    from llmflops.registry import _map_hf_config

    config = _map_hf_config(folder.name, read_config(folder))
    return lambda: parameter_count(config).total, lambda: kv_cache_bytes(config, 1, NUM_TOKENS, "bf16")


def ask_vramcalc(folder: Path) -> Answer:
    """Its `load_arch` and `estimate`, as its command line calls them."""
    from vramcalc.estimate import estimate
    from vramcalc.loaders import load_arch

    arch = load_arch(folder)
    return arch.param_count, lambda: estimate(arch, dtype="bf16", seq_len=NUM_TOKENS).kv_cache


def ask_sparkfit(folder: Path) -> Answer:
    """The spec of `sparkfit FOLDER --json`; it counts in billions, which are turned back into a whole number."""
    import sparkfit

    spec = sparkfit.load_local_config(str(folder))
    return lambda: round(spec["total_b"] * 1e9), lambda: sparkfit.kv_total_bytes(spec, NUM_TOKENS, 1, "fp16")


def ask_llm_cal(folder: Path) -> Answer:
    """Its detector and formulas, as its evaluator calls them; a value labelled unknown is a refusal."""
    from llm_cal.architecture.detector import detect
    from llm_cal.architecture.formulas.kv_cache import compute_kv_cache_bytes
    from llm_cal.architecture.formulas.weight import estimate_total_params

    profile = detect(read_config(folder))

    def known(annotated: object) -> float:
        if annotated.label == "unknown":
            raise ValueError(annotated.source)
        return annotated.value

    return (
        lambda: known(estimate_total_params(profile)),
        lambda: known(compute_kv_cache_bytes(profile, NUM_TOKENS, BF16_BYTES)),
    )


def ask_vramscout(folder: Path) -> Answer:
    """The plan of `vramscout FOLDER --json`; recurrent state, which it lists apart, is no part of the cache."""
    from vramscout.modern_v07 import plan_modern

    plan = plan_modern(str(folder), context=NUM_TOKENS, weight_dtype="bf16", kv_dtype="bf16", vram_gib=80.0)
    apart = ("Model weights / rank", "CUDA / runtime", "Prefill scratch", "Safety reserve")
    cache = {name: gib for name, gib in plan.parts_gib.items() if name not in apart and "state" not in name.lower()}
    return lambda: plan.profile.num_params, lambda: sum(cache.values()) * 2**30


def ask_llm_analysis(folder: Path) -> Answer:
    """Its Hugging Face reader and LLMAnalysis; the GPU named does not enter into either figure.

    `auto_map` is left out: it would make it ask for code that is not in the folder, where transformers has the class.
    """
    from llm_analysis.analysis import LLMAnalysis
    from llm_analysis.config import get_gpu_config_by_name, get_model_config_from_hf

    with tempfile.TemporaryDirectory(dir=folder) as plain:
        fields = {name: value for name, value in read_config(folder).items() if name != "auto_map"}
        Path(plain, "config.json").write_text(json.dumps(fields), encoding="utf-8")
        config = get_model_config_from_hf(plain)
    analysis = LLMAnalysis(config, get_gpu_config_by_name("a100-sxm-80gb"))
    return (
        lambda: analysis.total_num_params,
        lambda: config.num_layers * analysis.get_memory_kv_cache_per_layer(1, NUM_TOKENS, BF16_BYTES),
    )


TOOLS = {
    "llm-flops": ask_llm_flops,
    "vramcalc": ask_vramcalc,
    "sparkfit": ask_sparkfit,
    "llm-cal": ask_llm_cal,
    "vramscout": ask_vramscout,
    "llm-analysis": ask_llm_analysis,
}


def read_config(folder: Path) -> dict:
    """The folder's config.json."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def answer_document(tool: str, folder: Path) -> dict:
    """Both figures or null, and the reason of each null."""
    names = ("params", "kv_cache_bytes")
    reasons: dict[str, str] = {}
    figures: dict[str, float | None] = dict.fromkeys(names)
    try:
        ways = TOOLS[tool](folder)
    except (Exception, SystemExit) as error:
        return figures | {"reasons": dict.fromkeys(names, reason(error))}
    for name, way in zip(names, ways, strict=True):
        try:
            figures[name] = way()
        except (Exception, SystemExit) as error:
            reasons[name] = reason(error)
    return figures | {"reasons": reasons}


def reason(error: BaseException) -> str:
    """One line that says what the tool said."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def main() -> int:
    """Prints the document; the tool's own talk goes to standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    stdout, sys.stdout = sys.stdout, sys.stderr
    document = answer_document(args.tool, args.folder)
    print(json.dumps(document), file=stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
