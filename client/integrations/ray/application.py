"""The Serve application: a primary and its followers, each replica looking after one `polyhead serve`.

    serve run deploy/ray/serve.yaml

Requests do not pass through Ray: its gRPC proxy would drop error details and take a share of the throughput. The application's HTTP route
answers with the primary's address; `polyhead.client.Fleet` finds the followers there. The primary's store decides which heads are active,
so that it must be on the same disk when Ray starts the primary again: see `primary_resources`.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import JSONResponse

from polyhead.client.integrations.ray.places import FollowerPlace
from polyhead.client.integrations.ray.scaling import ByOpenRequests, open_requests
from polyhead.client.local import SERVE, LocalServer

log = logging.getLogger("ray.serve")


class Arguments(BaseModel):
    """`args` of the application in Serve's YAML. Secrets are no arguments: give them as environment variables (runtime_env)."""

    model_config = ConfigDict(extra="forbid")

    flags: list[str] = Field(default_factory=list, description="Model and flags of `polyhead serve`, the same for all servers")
    store: str = Field(description="Folder of the primary's heads, on a disk that it finds again after a restart")
    follower_store: str = Field("", description="Folder of the followers' copies, on each node; empty: beside `store`")
    command: list[str] = Field(default_factory=lambda: list(SERVE), description="What serves, if it is in another environment than Ray's")
    host: str = Field("", description="Address to listen on; empty: the node's")
    port: int = Field(50051, description="The primary's; followers take free ones")
    min_followers: int = Field(1, ge=0)
    max_followers: int = Field(4, ge=1)
    open_requests: float = Field(16.0, gt=0, description="Waiting and running requests that one follower is for")
    primary_resources: dict[str, Any] = Field(default_factory=dict, description="ray_actor_options of the primary")
    follower_resources: dict[str, Any] = Field(default_factory=dict, description="ray_actor_options of each follower")
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    drain_s: float = Field(60.0, description="Seconds that a server gets to end its calls")


class _Server:
    """A replica: it starts one server, reports that server's health as its own, and stops it at its end."""

    def __init__(self, arguments: Arguments, port: int, flags: list[str]) -> None:
        host = arguments.host or ray.util.get_node_ip_address()
        self.address = f"{host}:{port}"
        self._drain_s = arguments.drain_s
        where = ["--host", host, "--port", str(port), "--advertise", self.address]
        self._server = LocalServer.start([*arguments.flags, *where, *flags], log.info, arguments.command)

    def check_health(self) -> None:
        """Ray replaces the replica if this raises."""
        self._server.check()

    async def where(self) -> tuple[str, int]:
        """Its address, and the process id of its server."""
        return self.address, self._server.process.pid

    def __del__(self) -> None:
        """Serve calls it when the replica is to end."""
        if hasattr(self, "_server"):
            self._server.stop(self._drain_s)


class Primary(_Server):
    """The one server that numbers versions and generations."""

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments, arguments.port, ["--store", arguments.store])


class Followers(_Server):
    """Copies the primary's heads and serves them. After a restart on the same node it has its store and its address again."""

    async def __init__(self, arguments: Arguments, primary: DeploymentHandle) -> None:  # type: ignore[misc]  # Serve awaits it
        self._primary = primary
        address, _ = await primary.where.remote()
        host = arguments.host or ray.util.get_node_ip_address()
        self._place = FollowerPlace(Path(arguments.follower_store or f"{arguments.store}-followers"), host)
        super().__init__(arguments, self._place.port, ["--store", str(self._place.store), "--follow", address])

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For ByOpenRequests."""
        return await asyncio.to_thread(open_requests, self._server.ready["metrics_port"])

    async def __call__(self, request: Request) -> JSONResponse:
        """GET: {"primary": "HOST:PORT"}."""
        address, _ = await self._primary.where.remote()
        return JSONResponse({"primary": address})


def application(given: dict[str, Any]) -> serve.Application:
    """What `import_path` names; `given` is `args` there. Raises pydantic's ValidationError, which names the argument."""
    args = Arguments.model_validate(given)
    policy = {"policy_function": f"{ByOpenRequests.__module__}:{ByOpenRequests.__name__}", "policy_kwargs": {"target": args.open_requests}}
    scaling = {
        "min_replicas": args.min_followers,
        "max_replicas": args.max_followers,
        "upscale_delay_s": args.upscale_delay_s,
        "downscale_delay_s": args.downscale_delay_s,
        "policy": policy,
    }
    both = {"graceful_shutdown_timeout_s": args.drain_s + 5.0, "health_check_period_s": 2.0, "max_ongoing_requests": 1000}
    primary = serve.deployment(num_replicas=1, ray_actor_options=args.primary_resources, **both)(Primary).bind(args)
    options = {"autoscaling_config": scaling, "ray_actor_options": args.follower_resources}
    return serve.deployment(**options, **both)(Followers).bind(args, primary)
