"""Counts golden configs with transformers on the meta device, for whoever adds one. No test runs this.

    python tools/count_with_transformers.py CONFIG.json ...

Prints one line a config: name, parameters, class. The class is the first of `architectures`; a tied weight counts once,
a buffer never. Needs the extras `hf` and `train`. `params_truth.tsv` keeps the counts beside the published totals.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def count(path: Path) -> tuple[int, str]:
    """Parameters of the class that the config names, and the class."""
    import torch
    import transformers

    raw = json.loads(path.read_text(encoding="utf-8"))
    model_class = getattr(transformers, raw["architectures"][0])
    config = model_class.config_class.from_dict(raw)
    with torch.device("meta"):
        model = model_class(config)
    return sum(parameter.numel() for parameter in model.parameters()), model_class.__name__


def main() -> int:
    """Prints the counts as tab-separated lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", type=Path, nargs="+")
    print("config\tparams\tclass")
    for path in parser.parse_args().configs:
        params, name = count(path)
        print(f"{path.stem}\t{params}\t{name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
