"""An emulator that loses answers to CreateFunction, one for each line in the file that LOSSES names.

Run it as a program in place of `muster.local.embedded`. It executes the request and never answers.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

from ministack.services import lambda_svc

from muster.local import embedded

handle = lambda_svc.handle_request


async def losing(method: str, path: str, headers: Any, body: bytes, query_params: Any) -> Any:
    answer = await handle(method, path, headers, body, query_params)
    losses = Path(os.environ["LOSSES"])
    left = losses.read_text().splitlines()
    if method == "POST" and path.rstrip("/").endswith("/functions") and left:
        losses.write_text("\n".join(left[1:]))
        await asyncio.Event().wait()
    return answer


if __name__ == "__main__":
    lambda_svc.handle_request = losing
    embedded.main()
