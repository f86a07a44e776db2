"""What Muster adds to the emulator, shown on a bare WebSocket API without a stack."""

import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from muster.local import emulator
from tests.support.waiting import until

CODE = """
import json

def handler(event, context):
    print("called for", event["requestContext"]["eventType"])
    if event.get("body") == "crash":
        raise RuntimeError("broken on purpose")
    wanted = event.get("queryStringParameters") or {}
    if "crash" in wanted:
        raise RuntimeError("broken on purpose")
    return {"statusCode": int(wanted.get("status", 200)), "body": "answer"}
"""

Json = dict[str, Any]


class Api:
    """A WebSocket API whose routes all call one function."""

    def __init__(self, endpoint: str, logs: Path) -> None:
        self.logs = logs
        self._endpoint = endpoint
        self._session = boto3.Session("test", "test", region_name=emulator.REGION)
        self.id = self._create()

    def client(self, service: str) -> Any:
        make: Any = self._session.client
        return make(service, endpoint_url=self._endpoint)

    def open(self, query: str = "") -> ClientConnection:
        address = f"{self._endpoint.replace('http', 'ws', 1)}/_aws/execute-api/{self.id}/live{query}"
        return connect(address, proxy=None, compression=None, legacy=True)

    def post(self, connection_id: str, data: bytes) -> None:
        endpoint = f"{self._endpoint}/_aws/execute-api/{self.id}/live"
        gateway = self._session.client(
            "apigatewaymanagementapi", endpoint_url=endpoint, config=Config(retries={"total_max_attempts": 1})
        )
        gateway.post_to_connection(ConnectionId=connection_id, Data=data)

    def _create(self) -> str:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("main.py", CODE)
        trust = {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": {"Service": "lambda.amazonaws.com"},
                    "Action": "sts:AssumeRole",
                }
            ],
        }
        role = self.client("iam").create_role(RoleName="probe", AssumeRolePolicyDocument=json.dumps(trust))
        function = self.client("lambda").create_function(
            FunctionName="probe",
            Runtime="python3.13",
            Handler="main.handler",
            Role=role["Role"]["Arn"],
            Code={"ZipFile": archive.getvalue()},
        )
        gateway = self.client("apigatewayv2")
        api_id = str(
            gateway.create_api(
                Name="probe", ProtocolType="WEBSOCKET", RouteSelectionExpression="$request.body.action"
            )["ApiId"]
        )
        arn = function["FunctionArn"]
        uri = f"arn:aws:apigateway:{emulator.REGION}:lambda:path/2015-03-31/functions/{arn}/invocations"
        integration = gateway.create_integration(
            ApiId=api_id, IntegrationType="AWS_PROXY", IntegrationUri=uri
        )["IntegrationId"]
        for key, options in {
            "$connect": {},
            "$disconnect": {},
            "$default": {"RouteResponseSelectionExpression": "$default"},
            "silent": {},
        }.items():
            gateway.create_route(ApiId=api_id, RouteKey=key, Target=f"integrations/{integration}", **options)
        gateway.create_stage(ApiId=api_id, StageName="live", AutoDeploy=True)
        return api_id


Start = Callable[..., Api]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start an emulator with these settings and a WebSocket API on it; all end with the module."""
    with ExitStack() as running:

        def start_one(**settings: str) -> Api:
            folder = tmp_path_factory.mktemp("emulator")
            port = emulator.free_port()
            settings["MUSTER_LOG_DIR"] = str(folder / "logs")
            process = emulator.start(
                port, log=folder / "log", folder=folder / "tmp", record=print, settings=settings
            )
            running.callback(emulator.stop, process)
            endpoint = f"http://{emulator.HOST}:{port}"
            emulator.wait_until_healthy(process, endpoint, log=folder / "log")
            return Api(endpoint, folder / "logs")

        yield start_one


@pytest.fixture(scope="module")
def api(start: Start) -> Api:
    """An API without limits in time or rate."""
    return start()


@pytest.mark.parametrize(("query", "status"), [("?status=401", 401), ("?status=403", 403), ("?crash=1", 502)])
def test_refused_handshake_has_the_status_of_connect(api: Api, query: str, status: int) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        api.open(query)

    assert refusal.value.response.status_code == status


def test_answer_without_a_route_response_is_not_sent(api: Api) -> None:
    with api.open() as socket:
        socket.send('{"action": "silent"}')
        socket.send('{"action": "other"}')

        assert socket.recv(timeout=10) == "answer"
        with pytest.raises(TimeoutError):
            socket.recv(timeout=0.3)


def test_crash_of_a_function_is_an_internal_server_error(api: Api) -> None:
    with api.open() as socket:
        socket.send("crash")

        reply = json.loads(socket.recv(timeout=10))

    assert reply["message"] == "Internal server error"
    assert "broken on purpose" not in json.dumps(reply)


def test_output_of_a_function_called_from_a_socket_is_kept(api: Api) -> None:
    with api.open() as socket:
        socket.send("crash")
        socket.recv(timeout=10)

    text = (api.logs / "probe.log").read_text()
    events = api.client("logs").filter_log_events(logGroupName="/aws/lambda/probe")["events"]
    for kept in (text, "\n".join(event["message"] for event in events)):
        assert "called for MESSAGE" in kept
        assert "broken on purpose" in kept


@pytest.mark.parametrize("frames", [["x" * 32769], ["é" * 16385], ["x" * 32768] * 4 + ["x"]])
def test_frame_over_32_kb_and_message_over_128_kb_close_the_socket(api: Api, frames: list[str]) -> None:
    with api.open() as socket:
        socket.send(iter(frames) if len(frames) > 1 else frames[0])

        assert _close_code(socket) == 1009


def test_largest_frame_and_message_pass(api: Api) -> None:
    with api.open() as socket:
        for message in ("x" * 32768, iter(["x" * 32768] * 4)):
            socket.send(message)
            assert socket.recv(timeout=10) == "answer"


def test_callback_over_128_kb_is_refused(api: Api) -> None:
    with pytest.raises(ClientError, match="PayloadTooLarge"):
        api.post("any", b"x" * (128 * 1024 + 1))


def test_idle_socket_is_closed(start: Start) -> None:
    api = start(MUSTER_EMULATED_IDLE_SECONDS="0.5")
    with api.open() as socket:
        for _ in range(3):
            socket.send("anything")
            socket.recv(timeout=10)
        began = time.monotonic()

        assert _close_code(socket) == 1001
        assert 0.3 < time.monotonic() - began < 5


def test_old_socket_is_closed_although_it_is_used(start: Start) -> None:
    api = start(MUSTER_EMULATED_LIFE_SECONDS="3")
    with api.open() as socket:
        began = time.monotonic()
        while time.monotonic() - began < 1.5:
            socket.send("anything")
            socket.recv(timeout=10)

        assert _close_code(socket) == 1001


def test_requests_over_the_rate_get_429(start: Start) -> None:
    api = start(MUSTER_EMULATED_RATE="4")
    with api.open() as socket:
        until(lambda: _refused(api.open), "a refused handshake")
        until(lambda: _refused(partial(api.post, "any", b"x")), "a refused callback")
        socket.send("anything")
        assert json.loads(socket.recv(timeout=10))["message"] == "Too Many Requests"


def test_disconnects_are_dropped_on_request(api: Api, start: Start) -> None:
    dropping = start(MUSTER_EMULATED_DISCONNECTS="drop")

    for each, text in ((api, "called for DISCONNECT"), (dropping, "called for CONNECT")):
        with each.open():
            pass
        until(partial(_has_printed, each, text), text)
    with dropping.open() as socket:
        socket.send("anything")
        socket.recv(timeout=10)
    until(partial(_has_printed, dropping, "called for MESSAGE"), "a call after the disconnection")

    assert not _has_printed(dropping, "called for DISCONNECT")


def _has_printed(api: Api, text: str) -> bool:
    """Whether the function has printed this."""
    log = api.logs / "probe.log"
    return log.exists() and text in log.read_text()


def _close_code(socket: ClientConnection) -> int:
    """The code of the close frame that the server sends."""
    with pytest.raises(ConnectionClosed) as closed:
        socket.recv(timeout=10)
    assert closed.value.rcvd
    return closed.value.rcvd.code


def _refused(request: Callable[[], object]) -> bool:
    """Whether a request is answered with 429."""
    try:
        request()
    except InvalidStatus as refusal:
        return refusal.response.status_code == 429
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"] == 429
    return False
