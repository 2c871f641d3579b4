"""Writes docs/models-in-articles.md: what articles say of well-known models, and what the commands print.

    python tools/write_models_in_articles.py

Every figure of ours on the page is computed here; tests/docs/test_models_in_articles.py runs this again and compares.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from importlib import resources
from pathlib import Path

from estimator.cli import main as estimator
from estimator.errors import InputError
from estimator.params import count_params
from estimator.readers.source import source_of_values
from estimator.validating.rows import reference_rows

PAGE = Path(__file__).parents[1] / "docs" / "models-in-articles.md"

# Model, what articles write of its parameters and of its weights in fp32, and where the first number is from.
SIZES = (
    ("gpt-3-175b", "175 billion", "700 GB", "Brown et al., arXiv:2005.14165"),
    ("gpt2-xl", "1.5 billion", "6 GB", "Radford et al., 2019"),
    ("bert-large", "340 million", "1.3 GB", "Devlin et al., arXiv:1810.04805"),
    ("t5-11b", "11 billion", "45 GB", "Raffel et al., arXiv:1910.10683"),
    ("gpt2", "117 million", "0.5 GB", "Radford et al., 2019; the released checkpoint has 124 million"),
    ("bert-base-uncased", "110 million", "0.4 GB", "Devlin et al., arXiv:1810.04805"),
    ("llama-7b", "6.7 billion", "27 GB", "Touvron et al., arXiv:2302.13971"),
    ("llama-65b", "65.2 billion", "261 GB", "Touvron et al., arXiv:2302.13971"),
    ("bloom", "176 billion", "705 GB", "Le Scao et al., arXiv:2211.05100"),
    ("mixtral-8x7b", "47 billion", "187 GB", "Jiang et al., arXiv:2401.04088"),
)
BERT_CLASSES = ("BertModel", "BertForMaskedLM", "BertForPreTraining")
GPT_3 = "estimator size gpt-3-175b --weight-dtype fp32 --sequence-length 2048"
GPT_3_TRAINING = (
    "estimator size gpt-3-175b --sequence-length 2048 --training-tokens 300B --num-devices 10000 --achieved 24.6T"
    " --power 330 --pue 1.1 --grid 0.429"
)
LLAMA_TRAINING = "estimator size llama-7b --sequence-length 2048 --training-tokens 1T --device a100-80gb"
ENERGY = "estimator size llama-3.1-8b --device h100 --batch-size 64 --sequence-length 512 --generate 512"


def page() -> str:
    """The whole page as Markdown."""
    runs = {row["model"]: row for row in reference_rows("training_energy.tsv")}
    gpt_3, llama = runs["gpt-3-175b"], runs["llama-7b"]
    measured = next(row for row in reference_rows("energy_h100.tsv") if row["batch_size"] == "64")
    return "\n".join(
        [
            "# Models in articles",
            "",
            "What articles on model weights say, and what the commands print. No figure of ours is typed by hand:",
            "`python tools/write_models_in_articles.py` writes this page, and a test compares it.",
            "",
            "## Parameters and weights in fp32",
            "",
            *_sizes(),
            "",
            "Each row is `estimator size MODEL --weight-dtype fp32`; GB is 10⁹ bytes. Articles round: BERT-Large's 340",
            "million lie above the count of each of its classes.",
            "",
            *_bert_classes(),
            "",
            "## GPT-3",
            "",
            *_shown(GPT_3),
            "",
            "Its training, with what was published: 300 billion tokens (Brown et al., table 2.2), 10,000 V100 that",
            "achieved 24.6 TFLOP/s each and drew 330 W with their share of the host, PUE 1.1 and 0.429 kg of CO2e per",
            f"kWh ({gpt_3['source']}). Published results: 3,640 petaflop/s-days (Brown et al., table D.1),",
            f"{gpt_3['days']} days, {float(gpt_3['energy_mwh']):,.0f} MWh and {float(gpt_3['co2e_t']):,.0f} t.",
            "",
            *_shown(GPT_3_TRAINING, "training"),
            "",
            "The rule 6·N·D leaves out the products of attention, which grow with the length of a sequence; the exact",
            "count has them. Published rates are counted by the rule, so hours and energy follow it, and their",
            "intervals reach over all four counts.",
            "",
            "## LLaMA",
            "",
            f"With nothing but config, tokens and device. Its authors took {int(llama['device_hours']):,} A100 hours",
            f"({llama['source']}), and give {llama['energy_mwh']} MWh at PUE {llama['pue']}.",
            "",
            *_shown(LLAMA_TRAINING, "training"),
            "",
            "## Energy of a request",
            "",
            f"{measured['batch_size']} requests at once on an H100; the ML.ENERGY leaderboard measured",
            f"{measured['power_w']} W and {measured['joules_per_output_token']} J per output token.",
            "",
            *_shown(ENERGY, "on"),
            "",
            "How far all of this is off what others measured: `estimator validate`.",
            "",
        ]
    )


def _sizes() -> list[str]:
    lines = ["| model | article | parameters | article, fp32 | weights, fp32 | source |", "|---|---|---|---|---|---|"]
    for model, parameters, weights, source in SIZES:
        document = json.loads(_output(f"estimator size {model} --weight-dtype fp32 --json"))
        total, stored = document["params"]["total"], document["memory"]["weights_bytes"]
        lines.append(f"| `{model}` | {parameters} | {total:,} | {weights} | {stored / 1e9:.4g} GB | {source} |")
    return lines


def _bert_classes() -> list[str]:
    config = resources.files("estimator").joinpath("models", "bert-large.json").read_text(encoding="utf-8")
    lines = ["| class of `bert-large` | parameters |", "|---|---|"]
    for name in BERT_CLASSES:
        try:
            source = source_of_values(json.loads(config) | {"architectures": [name]}, "bert-large")
        except InputError as error:
            lines.append(f"| `{name}` | {error} |")
            continue
        lines.append(f"| `{name}` | {count_params(source.network).total:,} |")
    return lines


def _shown(command: str, start: str = "") -> list[str]:
    """A command and what it prints; from the line that begins with `start` to the next empty one, if given."""
    lines = [line.rstrip() for line in _output(command).splitlines()]
    if start:
        command += f" | sed -n '/^{start} /,/^$/p'"
        lines = lines[next(index for index, line in enumerate(lines) if line.startswith(f"{start} ")) :]
        lines = lines[: lines.index("")] if "" in lines else lines
    return ["```", f"$ {command}", *lines, "```"]


def _output(command: str) -> str:
    """What a command prints on standard output."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = estimator(shlex.split(command)[1:])
    if code != 0:
        raise SystemExit(f"{command} ended with code {code}")
    return out.getvalue()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
