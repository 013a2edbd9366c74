"""Serves the operator's questions, and asks them."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from bettong_proto.admin.v1 import admin_pb2

SERVICE = "bettong.admin.v1.Admin"
DEADLINE_S = 5.0


class AdminHost(grpc.GenericRpcHandler):
    """The service, on the engine's own address."""

    def __init__(
        self,
        status: Callable[[], admin_pb2.StatusResponse],
        resume: Callable[[], None],
        drain: Callable[[], None],
    ) -> None:
        async def on_status(_: Any, __: Any) -> admin_pb2.StatusResponse:
            return status()

        async def on_resume(_: Any, __: Any) -> admin_pb2.ResumeResponse:
            resume()
            return admin_pb2.ResumeResponse()

        async def on_drain(_: Any, __: Any) -> admin_pb2.DrainResponse:
            asyncio.get_running_loop().call_soon(drain)
            return admin_pb2.DrainResponse()

        self._methods = {
            f"/{SERVICE}/Status": _unary(on_status, admin_pb2.StatusRequest),
            f"/{SERVICE}/Resume": _unary(on_resume, admin_pb2.ResumeRequest),
            f"/{SERVICE}/Drain": _unary(on_drain, admin_pb2.DrainRequest),
        }

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a method, or None for an unknown one."""
        return self._methods.get(handler_call_details.method)


def call(address: str, method: str, request: Any, response: Any) -> Any:
    """Ask a running engine. Raises `grpc.RpcError`: it does not answer."""
    with grpc.insecure_channel(address) as channel:
        stub = channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        return stub(request, timeout=DEADLINE_S)


def _unary(behaviour: Any, request: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        behaviour,
        request_deserializer=request.FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )
