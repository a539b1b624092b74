"""What `import xai_callbacks` must not do."""

from __future__ import annotations

import importlib.resources
import json
import subprocess
import sys

HEAVY = ("captum", "matplotlib", "sklearn", "pandas", "cv2", "wandb", "mlflow")

# Runs in a fresh interpreter. Any connection, of any kind, ends it with a traceback.
PROBE = f"""
import json, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("importing opened a connection")

socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
statement = sys.argv[1]
exec(statement)
print(json.dumps(sorted(name for name in {HEAVY!r} if name in sys.modules)))
"""


def _heavy_modules_after(statement: str) -> list[str]:
    command = [sys.executable, "-W", "error", "-c", PROBE, statement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_import_loads_no_heavy_library_and_opens_no_connection():
    assert _heavy_modules_after("import xai_callbacks") == []


def test_the_probe_sees_a_heavy_library_and_a_connection():
    assert _heavy_modules_after("import sys, types; sys.modules['captum'] = types.ModuleType('captum')") == ["captum"]
    command = [sys.executable, "-c", PROBE, "socket.create_connection(('127.0.0.1', 9))"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "importing opened a connection" in result.stderr


def test_package_says_that_it_is_typed():
    assert importlib.resources.files("xai_callbacks").joinpath("py.typed").is_file()
