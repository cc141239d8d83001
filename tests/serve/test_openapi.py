"""The description of the service, and whether the service keeps to it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx

from segmint.serve.models import Models
from segmint.serve.schemas import GenerateAnswer, ModelsAnswer, PaintAnswer, SegmentAnswer
from segmint.serve.settings import Settings

PRESSED = Settings(key="secret", draws=8, pairs=4, wait=0.0)


def test_it_names_models_limits_bodies_and_keys(client: httpx.Client):
    told = client.get("/openapi.json").json()
    paths = told["paths"]
    assert set(paths) == {"/v1/segment", "/v1/generate", "/v1/paint", "/v1/models", "/health", "/ready", "/metrics"}
    segment = paths["/v1/segment"]["post"]
    known = {entry["name"]: entry for entry in segment["parameters"]}
    assert known["model"]["schema"]["enum"] == ["all", "plain", "slow", "failing"]
    assert known["model"]["required"]
    assert (known["draws"]["schema"]["minimum"], known["draws"]["schema"]["maximum"]) == (1, 8)
    assert set(segment["requestBody"]["content"]) >= {"multipart/form-data", "image/png", "image/tiff"}
    assert set(segment["responses"]["200"]["content"]) == {"application/json", "image/png", "application/x-npz"}
    assert {name for entry in segment["security"] for name in entry} == {"key", "bearer"}
    assert not paths["/v1/generate"]["post"]["parameters"][0]["required"]
    assert "security" not in paths["/health"]["get"]
    for name in ("SegmentAnswer", "GenerateAnswer", "PaintAnswer", "ModelsAnswer", "Problem"):
        assert told["components"]["schemas"][name]["examples"], name


def test_its_examples_are_answers():
    for model in (SegmentAnswer, GenerateAnswer, PaintAnswer, ModelsAnswer):
        for example in model.model_json_schema()["examples"]:
            assert model(**example).model_dump(exclude_unset=True, mode="json") == example


def test_schemathesis_finds_nothing(several, models: Models, tmp_path: Path):
    alone = Models({"all": models["all"].run})
    with several(alone, PRESSED) as (address, app):
        command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{address}/openapi.json", "--no-color"]
        command += ["--checks", "all", "--seed", "1", "--header", "X-API-Key: secret"]
        command += ["--phases", "examples,coverage,fuzzing", "--max-examples", "4"]
        beside = {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(Path(__file__).parent)}
        done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **beside}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        assert "No issues found" in done.stdout
        counter = app.state.service.metrics.requests
        for path in ("/v1/segment", "/v1/generate", "/v1/paint"):
            assert counter.labels(path, "200")._value.get() >= 1
