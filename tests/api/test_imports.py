"""The service's process stays light: no training, no runtime, no sampler."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from fastapi.testclient import TestClient
from api.app import create_app
with TestClient(create_app(sys.argv[1]), base_url="http://localhost") as client:
    assert client.post("/v1/estimates", json={"model": "gpt2", "device": "t4"}).status_code == 200
    assert client.get("/v1/studies/first/pareto").json()["points"]
    assert client.get("/v1/studies/first/trials").json()["trials"]
    assert client.get("/openapi.json").status_code == 200
heavy = {"torch", "onnx", "onnxruntime", "optuna", "transformers", "rich", "plotly"} & set(sys.modules)
print(" ".join(sorted(heavy)))
"""


def test_the_service_never_imports_what_it_does_not_run(store_url, study):
    """After an estimate, a front and the description of itself, none of the heavy libraries is loaded."""
    result = subprocess.run([sys.executable, "-c", SCRIPT, store_url], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []
