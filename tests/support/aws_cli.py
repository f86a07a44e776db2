"""A stand-in for the AWS CLI: the same arguments, checked against the service's model, sent to the endpoint.

python aws.py SERVICE OPERATION [--argument VALUE ...] [--query JMESPATH] [--output text]
"""

import json
import sys
from typing import Any

import boto3
import jmespath
from botocore import xform_name

SERVICES = {"s3api": "s3"}
RENAMED = {("sns", "notification-endpoint"): "endpoint"}
"""Parameters that the CLI renames."""


def main(service: str, operation: str, *rest: str) -> None:
    given = dict(zip([name.removeprefix("--") for name in rest[::2]], rest[1::2], strict=True))
    query, text = given.pop("query", None), given.pop("output", "json") == "text"
    make: Any = boto3.client  # the service is a variable, which the stubs' overloads do not take
    client = make(SERVICES.get(service, service))
    method = operation.replace("-", "_")
    api = client.meta.method_to_api_mapping[method]
    members = client.meta.service_model.operation_model(api).input_shape.members
    known = {xform_name(name, "-"): (name, shape) for name, shape in members.items()}
    arguments = {}
    for name, value in given.items():
        member, shape = known[RENAMED.get((service, name), name)]
        nested = shape.type_name in ("structure", "list", "map")
        arguments[member] = json.loads(value) if nested else value
    answer = getattr(client, method)(**arguments)
    answer.pop("ResponseMetadata")
    told = jmespath.search(query, answer) if query else answer
    print(told if text else json.dumps(told, indent=4, default=str))


if __name__ == "__main__":
    main(*sys.argv[1:])
