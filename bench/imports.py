"""The CPU time of a cold start of each function, until the end of its first event.

Each run is a new interpreter with the unpacked bundle (with bytecode), Lambda's variables and X-Ray enabled.
A stub on this machine replaces AWS, over plain HTTP. "Imports" includes imports during the first event,
because a deferred import saves nothing. The total is imports, clients and the event. A handler that makes one
call with boto3 is measured for comparison. All figures are compared with `import boto3`, which the runtime
provides. Runs alternate, and the figures are minima, because other load only adds time.
"""

import argparse
import compileall
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

import jwt
from rich.console import Console
from rich.table import Table

from muster.local import bundle, repository

# This code must not import anything that a function imports.
MEASURE = """
import os, sys, time
cpu, place = time.process_time, os.environ.pop("AWS_LAMBDA_FUNCTION_NAME")
started = cpu()
module = __import__(sys.argv[1], fromlist=["handler"])
imported = cpu() - started
os.environ["AWS_LAMBDA_FUNCTION_NAME"] = place  # only now, so that clients built at init are no imports

import builtins, importlib, json
late, depth = 0.0, 0

def timed(importer):
    def run(*arguments, **options):
        global late, depth
        depth, began = depth + 1, cpu()
        try:
            return importer(*arguments, **options)
        finally:
            depth -= 1
            if not depth:
                late += cpu() - began
    return run

class Context:
    function_name = memory_limit_in_mb = invoked_function_arn = aws_request_id = "bench"
    def get_remaining_time_in_millis(self):
        return 10_000

answer, everything = None, imported
if len(sys.argv) > 2:
    event = json.loads(sys.argv[2])
    builtins.__import__ = timed(builtins.__import__)
    importlib.import_module = timed(importlib.import_module)
    started = cpu()
    answer = module.handler(event, Context())
    everything += cpu() - started
print()
print(json.dumps([(imported + late) * 1000, everything * 1000, answer]))
"""

ONE_CALL = """
import boto3

def handler(event, context):
    key = {"connectionId": {"S": "L0SM9cOFvHcCIhw="}}
    boto3.client("dynamodb").delete_item(TableName="connections", Key=key)
    return {"statusCode": 200}
"""

SECRET = "a secret of thirty-two bytes, or of more"
CONNECTION = "L0SM9cOFvHcCIhw="
MESSAGE = {
    "type": "alert",
    "id": "01970000-0000-7000-8000-000000000000",
    "sentAt": "2026-01-01T00:00:00.000Z",
    "sender": {"service": "bench"},
    "shelterId": None,
    "payload": {"text": "x" * 400},
}
BATCH = {"messageId": MESSAGE["id"], "type": "alert", "envelope": json.dumps(MESSAGE)}
RECIPIENT = {"connectionId": CONNECTION, "userId": "u1"}

LIMITS = {"deliver": 1.3, "offline": 1.3, "disconnect": 1.3}
OTHERS = 1.6
"""The limits of a function's imports, as multiples of `import boto3`."""


def events(token: str) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """The first event of each function, and the fields that its result must contain."""

    def frame(kind: str, **fields: Any) -> dict[str, Any]:
        return {"requestContext": {"connectionId": CONNECTION, "eventType": kind}, **fields}

    request = {"type": "alert", "target": {"all": True}, "payload": MESSAGE["payload"]}
    start = {"id": "arn:aws:states:eu-west-1:0:execution:b:e", "startTime": "2026-01-01T00:00:00.000Z"}
    connected = RECIPIENT | {"connectedAt": MESSAGE["sentAt"]}
    undelivered = [RECIPIENT | {"reason": "gone"}]
    return {
        "accept": ({"request": request, "execution": start}, {"accepted": True}),
        "connect": (frame("CONNECT", queryStringParameters={"Authorization": token}), {"statusCode": 200}),
        "default": (frame("MESSAGE", body='{"action": "ping"}'), {"statusCode": 200}),
        "deliver": (BATCH | {"connections": [connected]}, {"delivered": 1}),
        "disconnect": (frame("DISCONNECT"), {"statusCode": 200}),
        "offline": (BATCH | {"claim": "c", "undelivered": undelivered}, {"offline": 1}),
    }


def environment(endpoint: str) -> dict[str, str]:
    """Lambda's variables, and those that Terraform sets for the functions."""
    return {
        "AWS_REGION": "eu-west-1",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
        "AWS_LAMBDA_FUNCTION_NAME": "bench",
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_SESSION_TOKEN": "test",
        "AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
        "AWS_XRAY_DAEMON_ADDRESS": "127.0.0.1:2000",
        "_X_AMZN_TRACE_ID": "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1",
        "AWS_ENDPOINT_URL": endpoint,
        "POWERTOOLS_METRICS_NAMESPACE": "Muster",
        "POWERTOOLS_SERVICE_NAME": "muster",
        "AUDIENCE_SHARDS": "4",
        "BROADCAST_STATE_MACHINE_ARN": "arn:aws:states:eu-west-1:0:stateMachine:broadcast",
        "CONNECTIONS_ENDPOINT": f"{endpoint}/live",
        "CONNECTION_TTL_SECONDS": "86400",
        "JWT_ALGORITHMS": "HS256",
        "JWT_AUDIENCE": "muster",
        "JWT_ISSUER": "muster",
        "JWT_SECRET_ARN": "arn:aws:secretsmanager:eu-west-1:0:secret:jwt",
        "MESSAGE_RETENTION_SECONDS": "604800",
        "OFFLINE_TOPIC_ARN": "arn:aws:sns:eu-west-1:0:offline",
        "POST_CONCURRENCY": "64",
        "ROLES": '{"resident": {"actions": ["alert"]}}',
        **{f"{name}_TABLE": name.lower() for name in ("CONNECTIONS", "MESSAGES", "USERS", "SHELTERS")},
    }


@contextmanager
def aws() -> Iterator[str]:
    """An AWS endpoint with a successful answer to every call of the first events."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Stub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Stub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        now = int(time.time())
        row = {
            "connectionId": {"S": CONNECTION},
            "userId": {"S": "u1"},
            "role": {"S": "resident"},
            "active": {"BOOL": True},
            "connectedAt": {"S": MESSAGE["sentAt"]},
            "ttl": {"N": str(now + 600)},
        }
        answers: dict[str, Any] = {
            "GetItem": {"Item": row},
            "UpdateItem": {"Attributes": row},
            "Query": {"Items": [], "Count": 0},
            "BatchGetItem": {"Responses": {}, "UnprocessedKeys": {}},
            "GetSecretValue": {"SecretString": SECRET},
        }
        action = self.headers.get("x-amz-target", "").rpartition(".")[2]
        body = json.dumps(answers.get(action, {}))
        if not action and "@connections" not in self.path:
            result = "<PublishBatchResult><Successful/><Failed/></PublishBatchResult>"
            body = f"<PublishBatchResponse>{result}</PublishBatchResponse>"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: Any) -> None:
        pass


def measure(variables: dict[str, str], module: str, event: dict[str, Any] | None) -> tuple[float, float, Any]:
    """Return CPU milliseconds of the imports and in total, in a new interpreter, and the event's result."""
    command = [sys.executable, "-c", MEASURE, module]
    if event is not None:
        command.append(json.dumps(event))
    shown = subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout
    imports, total, answer = json.loads(shown.splitlines()[-1])
    return imports, total, answer


def unpack(folder: Path) -> str:
    """Unpack the bundle for this interpreter into `folder`. Return the PYTHONPATH for it."""
    built = bundle.build_local(folder / "bundle")
    for archive, place in ((built.functions, "task"), (built.layer, "opt")):
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder / place)
    (folder / "task" / "one_call.py").write_text(ONE_CALL)
    for place in ("task", "opt"):
        compileall.compile_dir(folder / place, quiet=1, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
    return os.pathsep.join(map(str, (folder / "task", folder / "opt" / "python")))


def main() -> int:
    """Measure every function and print the table. Return 0 when every target is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9, help="new interpreters per figure")
    runs = parser.parse_args().runs
    now = int(time.time())
    claims = {"sub": "u1", "iss": "muster", "aud": "muster", "iat": now, "exp": now + 3600}
    first = events(jwt.encode(claims, SECRET, "HS256"))
    functions = sorted(path.stem for path in (repository.root() / "functions").glob("[a-z]*.py"))
    cases: dict[str, tuple[str, dict[str, Any] | None, dict[str, Any]]] = {
        "import boto3": ("boto3", None, {}),
        "boto3 and one call": ("one_call", {}, {}),
    }
    for name in functions:
        event, expected = first[name]
        cases[name] = (f"functions.{name}", event, expected)
    taken: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, aws() as endpoint:
        path = unpack(Path(folder))
        variables = {
            **environment(endpoint),
            "PYTHONPATH": path,
            "LAMBDA_TASK_ROOT": path.split(os.pathsep)[0],
        }
        for _ in range(runs + 1):
            for label, (module, request, wanted) in cases.items():
                imports, total, answer = measure(variables, module, request)
                assert wanted.items() <= (answer or {}).items(), (label, answer)
                taken.setdefault(label, []).append((imports, total))
    least: dict[str, tuple[float, float]] = {}
    for label, figures in taken.items():
        warm = figures[1:]  # the first run fills the disk cache
        least[label] = (min(imports for imports, _ in warm), min(total for _, total in warm))
    base, _ = least["import boto3"]
    of_boto3 = "of import boto3"
    table = Table("", "imports", of_boto3, "target", "total, with the first event", of_boto3, box=None)
    table.title = f"Cold starts, CPU ms, Python {platform.python_version()}"
    met = True
    for label, (imports, total) in least.items():
        limit = LIMITS.get(label, OTHERS) if label in functions else None
        ratio = imports / base
        met = met and (limit is None or ratio <= limit)
        verdict = "" if limit is None else f"{limit}{'' if ratio <= limit else ' MISSED'}"
        has_event = label != "import boto3"
        table.add_row(
            label,
            f"{imports:.0f}",
            f"{ratio:.2f}",
            verdict,
            f"{total:.0f}" if has_event else "",
            f"{total / base:.2f}" if has_event else "",
        )
    Console(width=120).print(table)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
