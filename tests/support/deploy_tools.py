"""What judges docker/: real Helm, Compose and hadolint, and Kubernetes' schemas, in an environment of their own."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv-deploy/bin"
NEEDS_TOOLS = pytest.mark.skipif(
    not (ROOT / ".venv-deploy/.installed").exists(), reason="the tools are not installed: make deploy-tools"
)

HELM = """
import json, sys
from helm_python import Chart, HelmError, lint
from kubernetes_validate import SchemaNotFoundError, ValidationError, validate
import yaml

path, values, version = json.load(sys.stdin)
try:
    linted = lint(path, values, strict=True)
    with Chart.load(path) as chart:
        chart.validate_schema(values)
        files = chart.render(values, name="demo", namespace="models")
except HelmError as error:
    sys.exit(str(error))
if linted["errors"]:
    sys.exit(str(linted["errors"]))
notes = [text for name, text in files.items() if name.endswith("NOTES.txt")]
manifests = [one for name, text in files.items() if not name.endswith("NOTES.txt") for one in yaml.safe_load_all(text)]
manifests = [one for one in manifests if one]
for one in manifests:
    try:
        validate(one, version, strict=True)
    except SchemaNotFoundError:
        assert one["apiVersion"] == "monitoring.coreos.com/v1", one  # the operator's, not Kubernetes' own
    except ValidationError as error:
        sys.exit(f"{one['kind']}: {error.message}")
json.dump({"manifests": manifests, "notes": "".join(notes)}, sys.stdout)
"""


class ChartError(Exception):
    """Helm or Kubernetes' schemas refuse it."""


class ComposeError(Exception):
    """Compose refuses it."""


def rendered(chart: Path, values: dict[str, Any], kubernetes: str) -> tuple[dict[str, dict[str, Any]], str]:
    """A chart's manifests by kind, each valid by Kubernetes' own schemas, and its notes.

    Raises:
        ChartError: Helm's linter or renderer, or a schema, refuses it.
    """
    request = json.dumps([str(chart), values, kubernetes])
    done = subprocess.run([BIN / "python", "-c", HELM], input=request, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise ChartError(done.stderr)
    answer = json.loads(done.stdout)
    return {manifest["kind"]: manifest for manifest in answer["manifests"]}, answer["notes"]


def composed(file: Path, profile: str, environment: dict[str, str]) -> dict[str, Any]:
    """A compose file as Compose itself understands it, checked against the Compose specification.

    Raises:
        ComposeError: Compose refuses it, or has something to say about it.
    """
    # The package's own command of that name hides the exit code. A file .env of whoever works here is not read.
    [compose] = BIN.parent.glob("lib/*/site-packages/compose/docker-compose")
    command = [compose, "--env-file", "/dev/null", "--file", file, "--profile", profile, "config", "--format", "json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin", **environment}
    )
    if done.returncode or done.stderr:
        raise ComposeError(done.stderr)
    configuration: dict[str, Any] = json.loads(done.stdout)
    return configuration
