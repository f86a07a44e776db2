"""The local stack: the embedded AWS emulator, with this checkout's Terraform applied to it.

All its files are in one state directory:

    stack.lock               marks the directory as a stack's, and is locked during `up` and `down`
    stack.json               phase, endpoint, the emulator's process, and the Terraform outputs
    bundle/ source/          the Lambda bundle, and the copy of the module that Terraform deploys
    terraform.tfstate ...    Terraform's state and data; those in terraform/ belong to the user's work on AWS
    emulator.log tmp/        the emulator's output and its temporary files
    logs/                    the output of each function, in a file of its name

The emulator keeps AWS in memory. A stack that was interrupted before it was ready is removed, and `up` starts
again from the beginning.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from muster.errors import OutputsError, StackError, TerraformError, TerraformStalled
from muster.local import bundle, emulator, record, repository
from muster.local.emulator import Process
from muster.local.record import Phase
from muster.local.seed import seed
from muster.local.terraform import PlannedChange, Terraform, find_binary
from muster.outputs import Outputs
from muster.progress import Progress, Silent

DEFAULT_PORT = 4566

_LOCK = "stack.lock"
_VARIABLES = "variables.tfvars.json"
_LOG = "emulator.log"
_FUNCTION_LOGS = "logs"
# Terraform does not see code that `update_functions` deployed: while this file exists, `up` deploys the code.
_EDITED = "edited"
_TERRAFORM_DATA = "terraform-data"
_CONTENTS = (
    record.RECORD,
    record.PARTIAL_RECORD,
    _VARIABLES,
    "bundle",
    "source",
    _LOG,
    _FUNCTION_LOGS,
    _EDITED,
    "tmp",
    "terraform.tfstate",
    "terraform.tfstate.backup",
    ".terraform.tfstate.lock.info",
    _TERRAFORM_DATA,
)
# How long one resource may take. The slowest, an SQS queue, takes 25 to 30 s. A start that stalls twice ends
# within three minutes.
_STALL_SECONDS = 45.0
# Smaller than on AWS: here all Lambdas share the cores of one machine.
_SMALL_SCALE: Mapping[str, Any] = {"audience_shards": 2, "partition_concurrency": 2, "batch_concurrency": 2}
# The module and the folder that it reads, without the files that the user keeps there for AWS.
_MODULE_FOLDERS = ("terraform", "statemachines")
_USERS_OWN = shutil.ignore_patterns(
    ".terraform*", "*.tfstate*", "*.tfvars*", "*_override.tf*", "tests", "examples"
)
_NOT_INHERITED = ("AWS_", "TF_VAR_", "TF_CLI_ARGS", "TF_DATA_DIR", "TF_WORKSPACE")


@dataclass(frozen=True)
class Status:
    """The state of a stack. `process` is None when the stack is down, or attached to an external emulator.

    `outputs` is None before the stack is ready, and when a version of Muster with other outputs started it:
    `up` updates it, and `down` does not need the outputs.
    """

    phase: Phase
    endpoint_url: str | None = None
    process: Process | None = None
    outputs: Outputs | None = None

    def require_endpoint(self) -> str:
        """Return the endpoint; raise StackError when the stack is down."""
        if self.endpoint_url is None:
            raise StackError("The local stack is not up.", fix="Run `muster up`.")
        return self.endpoint_url


class Stack:
    """One local stack, identified by its state directory. POSIX systems only.

    `up` and `down` may be called repeatedly and from different processes. A second call at the same time
    raises StackError. After a KeyboardInterrupt, no process that the interrupted call started is left.
    """

    def __init__(
        self,
        state_dir: Path | None = None,
        *,
        port: int | None = None,
        endpoint: str | None = None,
        variables: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Describe a stack. Nothing starts before `up`.

        port: the emulator's port on 127.0.0.1: 4566 by default, 0 for a free one.
        endpoint: a running emulator, such as LocalStack, to use instead of the embedded one.
        variables: Terraform variables that override those of the local stack.
        """
        self.state_dir = (state_dir or repository.default_state_dir()).absolute()
        self._port = port
        self._endpoint = endpoint.rstrip("/") if endpoint else None
        self._variables = dict(variables or {})
        self._progress = progress or Silent()

    @property
    def log_file(self) -> Path:
        """The emulator's output."""
        return self.state_dir / _LOG

    def function_logs(self) -> list[Path]:
        """Return the files with each function's output. They stay when the emulator ends by itself."""
        return sorted((self.state_dir / _FUNCTION_LOGS).glob("*.log"))

    def status(self) -> Status:
        """Return the status, by the recorded process: another program may answer on the port."""
        recorded = record.read(self.state_dir)
        return self._parse(recorded) if recorded.running() else Status("down")

    def gone(self) -> Process | None:
        """Return the recorded emulator's process if it has ended without `down`."""
        process = record.read(self.state_dir).process
        return process if process and not process.alive() else None

    def ready(self) -> Outputs | None:
        """Return the outputs if the stack is up with these Terraform variables. Its code is not compared."""
        status = self.status()
        if status.phase != "ready":
            return None
        with suppress(OSError, ValueError):
            applied = json.loads((self.state_dir / _VARIABLES).read_text())
            if applied == self._values(status.require_endpoint()):
                return status.outputs
        return None

    def up(self) -> Outputs:
        """Start the stack, or update the running one, and return its outputs.

        A running stack gets the current code and Terraform, and keeps its data. When the first apply fails or
        is interrupted, the emulator is stopped. When a resource takes more than 45 seconds, because an
        answer was lost, `up` tries once more on a new emulator.
        """
        with self._locked():
            before = self.status()
            # An external emulator still has the resources of an interrupted apply: continue from that state.
            if before.phase == "ready" or (before.phase != "down" and before.process is None):
                self._require_same_place(before)
                self._progress.step(f"The local stack is up on {before.endpoint_url}: applying changes")
                return self._deploy(before)
            self._stop_and_clean(before)
            try:
                return self._begin()
            except TerraformStalled as stalled:
                self._progress.step(f"Starting again on a new emulator: {stalled}")
            try:
                return self._begin()
            except TerraformStalled as stalled:
                raise TerraformStalled(
                    f"{stalled} This was the second attempt.",
                    fix=f"Run `muster up` again when the machine is less busy, and see {self.log_file}.",
                ) from None

    def down(self) -> bool:
        """Destroy the resources and stop the emulator; return False when the stack was not up.

        The embedded emulator is stopped, and the state removed, even when Terraform cannot destroy
        everything. With an external emulator, a failed destroy raises and keeps the state, so that it can be
        repeated.
        """
        if not self.state_dir.exists():
            return False
        with self._locked():
            status = self.status()
            try:
                if status.phase != "down" and (self.state_dir / "terraform.tfstate").exists():
                    self._destroy(status)
            finally:
                if status.process:
                    self._progress.step("Stopping the emulator")
                    self._stop_and_clean(status)
            self._stop_and_clean(status)
            (self.state_dir / _LOCK).unlink()
            with suppress(OSError):
                self.state_dir.rmdir()
            return status.phase != "down"

    def plan(self) -> list[PlannedChange]:
        """Return the changes that Terraform would make now. Right after `up` there are none."""
        return self._terraform(self.status()).plan(self._var_file)

    def machines(self) -> dict[str, tuple[str, str]]:
        """Return the deployed template and definition of each state machine."""
        machines = self._require_outputs().client("stepfunctions")
        folder = self.state_dir / "source" / "statemachines"
        return {
            name: (
                (folder / f"{name}.asl.json").read_text(),
                machines.describe_state_machine(stateMachineArn=arn)["definition"],
            )
            for name, arn in self._machine_arns().items()
        }

    def update_functions(self) -> None:
        """Deploy the checkout's code to the running functions, without Terraform."""
        with self._locked():
            outputs = self._require_outputs()
            bundle.build_local(self.state_dir / "bundle")
            (self.state_dir / _EDITED).touch()
            self._replace_code(outputs)

    def _replace_code(self, outputs: Outputs) -> None:
        archive = (self.state_dir / "bundle" / "functions.zip").read_bytes()
        functions = outputs.client("lambda")
        for name in outputs.function_names.values():
            functions.update_function_code(FunctionName=name, ZipFile=archive)

    def update_machine(self, name: str, definition: str) -> None:
        """Deploy a definition to a running state machine ("broadcast" or "fanout"), without Terraform."""
        with self._locked():
            machines = self._require_outputs().client("stepfunctions")
            machines.update_state_machine(stateMachineArn=self._machine_arns()[name], definition=definition)

    def _machine_arns(self) -> dict[str, str]:
        outputs = self._require_outputs()
        return {
            "broadcast": outputs.broadcast_state_machine_arn,
            "fanout": outputs.fanout_state_machine_arn,
        }

    def _require_outputs(self) -> Outputs:
        status = self.status()
        status.require_endpoint()
        if status.outputs is None:
            raise StackError("The local stack is not ready.", fix="Run `muster up`.")
        return status.outputs

    def _begin(self) -> Outputs:
        """Start an emulator and deploy to it. When that fails, keep only its logs."""
        try:
            return self._deploy(self._start())
        except BaseException:
            failed = self._parse(record.read(self.state_dir))
            if failed.process:
                self._progress.step("Stopping the emulator")
                self._stop_and_clean(failed, keep=(_LOG, _FUNCTION_LOGS, _TERRAFORM_DATA))
            raise

    def _start(self) -> Status:
        find_binary()  # raises before anything has started
        if self._endpoint:
            if not emulator.healthy(self._endpoint):
                raise StackError(f"No emulator answers at {self._endpoint}.", fix="Start it first.")
            return self._write(Status("starting", self._endpoint))
        port = DEFAULT_PORT if self._port is None else self._port
        if port == 0:
            port = emulator.free_port()
        emulator.require_free(port)
        self._progress.step(f"Starting the emulator on {emulator.HOST}:{port}")
        starting = Status("starting", f"http://{emulator.HOST}:{port}")
        process = emulator.start(
            port,
            log=self.log_file,
            folder=self.state_dir / "tmp",
            record=lambda process: self._write(replace(starting, process=process)),
            settings={"MUSTER_LOG_DIR": str(self.state_dir / _FUNCTION_LOGS)},
        )
        return replace(starting, process=process)

    def _deploy(self, status: Status) -> Outputs:
        """Build, apply and seed. The emulator starts meanwhile, so this waits for it as late as possible."""
        endpoint_url = status.require_endpoint()
        self._progress.step("Building the Lambda bundle")
        bundle.build_local(self.state_dir / "bundle")
        self._progress.step("Preparing Terraform")
        self._write_source(endpoint_url)
        terraform = self._terraform(status)
        terraform.find_provider(repository.cache_dir())
        terraform.init()
        if status.process:
            emulator.wait_until_healthy(status.process, endpoint_url, log=self.log_file)
        self._progress.step("Applying Terraform")
        terraform.apply(self._var_file)
        outputs = Outputs.parse(terraform.output(), source="The local state", endpoint_url=endpoint_url)
        if (self.state_dir / _EDITED).exists():
            self._replace_code(outputs)
            (self.state_dir / _EDITED).unlink()
        self._progress.step("Seeding users and shelters")
        seed(outputs)
        self._write(Status("ready", endpoint_url, status.process, outputs))
        return outputs

    def _destroy(self, status: Status) -> None:
        self._write(replace(status, phase="destroying"))
        self._progress.step("Destroying Terraform's resources")
        try:
            self._terraform(status).destroy("-refresh=false", self._var_file)
        except TerraformError as error:
            if status.process is None:
                raise
            self._progress.step(f"Stopping the emulator without a complete destroy: {error.message}")

    def _terraform(self, status: Status) -> Terraform:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
        environment = {
            **inherited,
            **emulator.local_environment(status.require_endpoint()),
            "TF_DATA_DIR": str(self.state_dir / _TERRAFORM_DATA),
        }
        return Terraform(
            self.state_dir / "source" / "terraform",
            environment=environment,
            progress=self._progress,
            # An external emulator may be slow, and has no second attempt.
            stall_seconds=_STALL_SECONDS if status.process else None,
        )

    @property
    def _var_file(self) -> str:
        return f"-var-file={self.state_dir / _VARIABLES}"

    def _write_source(self, endpoint_url: str) -> None:
        """Copy the module, to keep its lock file, backend and variables apart from those for AWS."""
        source = self.state_dir / "source"
        for folder in _MODULE_FOLDERS:
            shutil.rmtree(source / folder, ignore_errors=True)
            shutil.copytree(repository.root() / folder, source / folder, ignore=_USERS_OWN)
        state = str(self.state_dir / "terraform.tfstate")
        override = {"terraform": {"backend": {"local": {"path": state}}}}
        (source / "terraform" / "backend_override.tf.json").write_text(json.dumps(override))
        (self.state_dir / _VARIABLES).write_text(json.dumps(self._values(endpoint_url), indent=2))

    def _values(self, endpoint_url: str) -> dict[str, Any]:
        """Return all Terraform variables of this stack."""
        return {
            **_SMALL_SCALE,
            "bundle_dir": str(self.state_dir / "bundle"),
            "lambda_architecture": bundle.host_architecture(),
            "execute_api_url": f"{endpoint_url}/_aws/execute-api/{{api_id}}",
            "deletion_protection": False,
            **self._variables,
        }

    def _require_same_place(self, status: Status) -> None:
        port = status.endpoint_url and status.endpoint_url.rpartition(":")[2]
        other_port = self._port is not None and self._port != 0 and str(self._port) != port
        if other_port or (self._endpoint and self._endpoint != status.endpoint_url):
            raise StackError(f"The stack is up on {status.endpoint_url}.", fix="Run `muster down` first.")

    def _parse(self, recorded: record.Record) -> Status:
        """Read a record. Outputs of another version of Muster may be unreadable, and are then left out."""
        status = Status(recorded.phase, recorded.endpoint_url, recorded.process)
        with suppress(OutputsError):
            if recorded.outputs:
                source = str(self.state_dir / record.RECORD)
                return replace(status, outputs=Outputs.parse(recorded.outputs, source=source))
        return status

    def _write(self, status: Status) -> Status:
        outputs = status.outputs.to_dict() if status.outputs else None
        recorded = record.Record(status.phase, status.endpoint_url, status.process, outputs)
        record.write(self.state_dir, recorded)
        return status

    def _stop_and_clean(self, status: Status, keep: tuple[str, ...] = ()) -> None:
        """Stop the recorded emulator. Then remove only what this class put into the state directory."""
        if status.process:
            emulator.stop(status.process)
        for name in _CONTENTS:
            if name not in keep:
                path = self.state_dir / name
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def _remove_if_unused(self) -> None:
        """Remove the state directory when it contains only the lock, because nothing has started in it."""
        if [path.name for path in self.state_dir.iterdir()] == [_LOCK]:
            (self.state_dir / _LOCK).unlink()
            with suppress(OSError):
                self.state_dir.rmdir()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the state directory's lock. The system releases it however this process ends."""
        try:
            import fcntl  # noqa: PLC0415 - missing on Windows, where the rest of the package works
        except ImportError:
            raise StackError(
                "The local stack needs Linux or macOS.",
                fix="On Windows run it in WSL, or name a deployment on AWS with --outputs.",
            ) from None
        path = self.state_dir / _LOCK
        if self.state_dir.exists() and not path.exists() and any(self.state_dir.iterdir()):
            raise StackError(
                f"{self.state_dir} is not empty, and is not the folder of a stack.",
                fix="Name another --state-dir.",
            )
        self.state_dir.mkdir(parents=True, exist_ok=True)
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StackError(
                    "Another process is starting or stopping this stack.", fix="Wait until it has finished."
                ) from None
            try:
                yield
            except BaseException:
                self._remove_if_unused()
                raise
