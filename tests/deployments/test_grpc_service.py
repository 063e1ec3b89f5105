"""The gRPC service on a real server: tritonclient works unmodified, in its three ways, and errors have their codes."""

import asyncio
import queue
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from deployments import protocol
from deployments.config import HttpConfig, Manifest, RouterConfig, TensorSpec
from deployments.counters import Statistics
from deployments.grpc_service import CODES, METHODS, STREAM_DEPTH, GrpcService, add_to_server, mount, serve_grpc
from deployments.oip import open_inference_pb2 as pb
from deployments.protocol import InferRequest, Served, WireError

MANIFEST = Manifest(
    TensorSpec("image", (2, 3)), TensorSpec("scores", (3,)), ("cat", "dog", "hen"), slo_s=0.1, name="animals"
)
LIMITS = RouterConfig(max_body_mb=0.1, max_request_batch=4)
X = np.arange(12, dtype=np.float32).reshape(2, 2, 3)

ERRORS = {
    1.0: (protocol.BadRequest("bad"), "INVALID_ARGUMENT"),
    2.0: (protocol.BodyTooLarge("large"), "INVALID_ARGUMENT"),
    3.0: (protocol.ImpossibleBound("bound"), "INVALID_ARGUMENT"),
    4.0: (protocol.QueueFull("full", 1.5), "RESOURCE_EXHAUSTED"),
    5.0: (protocol.Unavailable("down"), "UNAVAILABLE"),
    6.0: (protocol.DeadlineUnmet("late"), "DEADLINE_EXCEEDED"),
    7.0: (protocol.ReplicaFailed("broken"), "INTERNAL"),
    8.0: (protocol.WireError("é" * 20_000), "INTERNAL"),
}
WAIT = 99.0  # a priority that is not answered until the gate opens


class FakeRouter:
    """Scores are sums of the input's rows; a request's priority says what becomes of it."""

    def __init__(self) -> None:
        self.asked: list[InferRequest] = []
        self.up = True
        self.gate = asyncio.Event()
        self.most = self.running = self.cancelled = 0

    async def infer(self, application: str, asked: InferRequest) -> tuple[np.ndarray, Served]:
        assert application == "animals"
        self.asked.append(asked)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if asked.priority == WAIT:
                await self.gate.wait()
            elif asked.id.isdecimal():
                await asyncio.sleep(0.001 * (int(asked.id) % 5))  # later requests are done before
            if asked.priority in ERRORS and asked.min_accuracy == 1:
                raise ERRORS[asked.priority][0]
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return asked.x.sum(axis=1), Served("small", "cameras", "camera-1", 0.91, True, 12.5, True)

    def ready(self, application: str | None = None) -> bool:
        return self.up and application in (None, "animals")


def free_port() -> tuple[socket.socket, int]:
    """A port that is reserved, but not listened on, as long as the socket is open: the server may share it."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved, reserved.getsockname()[1]


def service_of(router: FakeRouter) -> GrpcService:
    statistics = Statistics(["animals"], ["animals/small"])
    statistics.applications["animals"].answered(2, 0.5, 1.0)
    return GrpcService(router, {"animals": MANIFEST}, LIMITS, statistics.body, "0.1.0")


@asynccontextmanager
async def serving(router: FakeRouter) -> AsyncIterator[str]:
    reserved, port = free_port()
    server = await serve_grpc(service_of(router), HttpConfig(), port, LIMITS)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
        reserved.close()


@contextmanager
def in_thread() -> Iterator[tuple[str, FakeRouter, asyncio.AbstractEventLoop]]:
    """A server on a loop of its own, for the clients that block."""
    started: queue.Queue[Any] = queue.Queue()

    async def main() -> None:
        stop, router = asyncio.Event(), FakeRouter()
        async with serving(router) as address:
            started.put((address, router, asyncio.get_running_loop(), stop))
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    address, router, loop, stop = started.get(timeout=20)
    try:
        yield address, router, loop
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, FakeRouter]]:
    with in_thread() as (address, router, _):
        yield address, router


@pytest.fixture
def client(server: tuple[str, FakeRouter]) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(server[0])
    yield client
    client.close()


def image(x: np.ndarray = X) -> list[triton.InferInput]:
    return [triton.InferInput("image", list(x.shape), "FP32").set_data_from_numpy(x)]


def test_tritonclient_reads_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("animals", "1")
    assert client.get_server_metadata().version == "0.1.0"
    assert list(client.get_model_metadata("animals").inputs[0].shape) == [-1, 2, 3]
    assert client.get_model_config("animals").config.max_batch_size == 4


def test_tritonclient_reads_statistics_and_the_index(client: triton.InferenceServerClient) -> None:
    (model, variant) = client.get_inference_statistics("animals").model_stats
    assert (model.name, model.inference_count, model.inference_stats.success.ns) == ("animals", 2, 500_000_000)
    assert variant.name == "animals/small"
    assert len(client.get_inference_statistics().model_stats) == 2
    (entry,) = client.get_model_repository_index().models
    assert (entry.name, entry.version, entry.state) == ("animals", "1", "READY")


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.is_model_ready("animal"),
        lambda c: c.get_model_metadata("animal"),
        lambda c: c.get_model_config("animals", "2"),
        lambda c: c.get_inference_statistics("animal"),
        lambda c: c.infer("animal", image()),
        lambda c: c.infer("animals", image(), model_version="2"),
    ],
)
def test_what_is_not_served_is_not_found(
    client: triton.InferenceServerClient, call: Callable[[triton.InferenceServerClient], object]
) -> None:
    with pytest.raises(InferenceServerException, match="animals") as caught:
        call(client)
    assert caught.value.status() == "StatusCode.NOT_FOUND"


@pytest.mark.parametrize("call", ["load_model", "unload_model"])
def test_loading_is_refused_with_the_reason(client: triton.InferenceServerClient, call: str) -> None:
    with pytest.raises(InferenceServerException, match="the planner loads and unloads its variants") as caught:
        getattr(client, call)("animals")
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("asked", [None, ["label", "scores"], ["label"]])
def test_tritonclient_infers(
    server: tuple[str, FakeRouter],
    client: triton.InferenceServerClient,
    compression: str | None,
    asked: list[str] | None,
) -> None:
    result = client.infer(
        "animals",
        image(),
        outputs=None if asked is None else [triton.InferRequestedOutput(name) for name in asked],
        model_version="1" if asked else "",
        request_id="r1",
        compression_algorithm=compression,
        parameters={"deadline_ms": 80, "min_accuracy": 0.5},
        priority=1,
        timeout=1000,
    )
    assert result.as_numpy("label").tolist() == [2, 2]
    if asked != ["label"]:
        assert np.array_equal(result.as_numpy("scores"), X.sum(axis=1))
    response = result.get_response()
    assert response.id == "r1"
    assert response.parameters["pool"].string_param == "cameras"
    assert response.parameters["emulated"].bool_param
    got = server[1].asked[-1]
    assert (got.deadline_ms, got.min_accuracy, got.priority) == (80, 0.5, 1)


def test_the_calls_own_deadline_bounds_the_request(
    server: tuple[str, FakeRouter], client: triton.InferenceServerClient
) -> None:
    client.infer("animals", image(), parameters={"deadline_ms": 60_000}, client_timeout=20.0)
    assert 10_000 < server[1].asked[-1].deadline_ms < 20_100  # gRPC rounds up
    client.infer("animals", image(), client_timeout=20.0)
    assert server[1].asked[-1].deadline_ms is None


@pytest.mark.parametrize("priority", sorted(ERRORS))
def test_each_culprit_has_its_status(client: triton.InferenceServerClient, priority: float) -> None:
    error, status = ERRORS[priority]
    with pytest.raises(InferenceServerException) as caught:
        client.infer("animals", image(), parameters={"min_accuracy": 1}, priority=int(priority))
    assert caught.value.status() == f"StatusCode.{status}"
    assert caught.value.message()[:100] == str(error)[:100]


def test_what_the_decoder_refuses_is_an_invalid_argument(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match=r"so write 0\.9 for 90 %") as caught:
        client.infer("animals", image(), parameters={"min_accuracy": 90})
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_a_message_beyond_the_limit_is_refused_unread(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="larger than max") as caught:
        client.infer("animals", image(np.zeros((20_000, 2, 3), np.float32)))
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


def stub(channel: grpc.aio.Channel, name: str = "ModelInfer") -> Any:
    kind = channel.stream_stream if "Stream" in name else channel.unary_unary
    response = pb.ModelStreamInferResponse if "Stream" in name else getattr(pb, f"{name}Response")
    write = (lambda m: m) if "Stream" in name else (lambda m: m.SerializeToString())
    return kind(f"/inference.GRPCInferenceService/{name}", write, response.FromString)


def message(identity: str = "", priority: float = 1.0, accuracy: float = 0.0) -> pb.ModelInferRequest:
    tensor = {"name": "image", "datatype": "FP32", "shape": X.shape}
    request = pb.ModelInferRequest(model_name="animals", id=identity, inputs=[tensor], raw_input_contents=[X.tobytes()])
    request.parameters["priority"].double_param = priority
    request.parameters["min_accuracy"].double_param = accuracy
    return request


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


def test_a_full_queue_says_when_to_come_back() -> None:
    async def main() -> None:
        async with serving(FakeRouter()) as address, grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub(channel)(message(priority=4.0, accuracy=1.0))
            assert ("retry-after", "2") in [tuple(pair) for pair in caught.value.trailing_metadata()]

    asyncio.run(main())


def test_a_cancelled_call_cancels_its_work_and_so_does_one_whose_time_is_over() -> None:
    async def main() -> None:
        router = FakeRouter()
        async with serving(router) as address, grpc.aio.insecure_channel(address) as channel:
            call = stub(channel)(message(priority=WAIT))
            await until(lambda: router.running == 1)
            call.cancel()
            await until(lambda: router.cancelled == 1)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub(channel)(message(priority=WAIT), timeout=0.1)
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: router.cancelled == 2)
            assert router.running == 0

    asyncio.run(main())


def test_tritonclient_aio_infers_many_at_a_time() -> None:
    async def main() -> None:
        router = FakeRouter()
        async with serving(router) as address, triton_aio.InferenceServerClient(address) as client:
            calls = [client.infer("animals", image(), request_id=str(i)) for i in range(40)]
            results = await asyncio.gather(*calls)
            assert [r.get_response().id for r in results] == [str(i) for i in range(40)]
            assert router.most > 1

    asyncio.run(main())


def test_a_stream_is_answered_in_order_with_errors_in_their_places(client: triton.InferenceServerClient) -> None:
    """tritonclient's own stream, a thread that calls back."""
    got: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: got.put(error or result.get_response().id))
    for i in range(30):
        bound = {"min_accuracy": 90} if i == 7 else {"min_accuracy": 0.5}
        client.async_stream_infer("animals", image(), request_id=str(i), parameters=bound)
    answers = [got.get(timeout=20) for _ in range(30)]
    client.stop_stream()
    assert isinstance(answers[7], InferenceServerException)
    assert "so write 0.9 for 90 %" in answers[7].message()
    assert [a for a in answers if isinstance(a, str)] == [str(i) for i in range(30) if i != 7]


def test_tritonclient_aio_streams() -> None:
    async def main() -> None:
        async def requests() -> AsyncIterator[dict[str, Any]]:
            for i in range(10):
                yield {"model_name": "animals" if i else "animal", "inputs": image(), "request_id": str(i)}

        async with serving(FakeRouter()) as address, triton_aio.InferenceServerClient(address) as client:
            answers = [pair async for pair in client.stream_infer(requests())]
            assert "did you mean 'animals'?" in answers[0][1].message()
            assert [result.get_response().id for result, error in answers[1:]] == [str(i) for i in range(1, 10)]

    asyncio.run(main())


def test_a_stream_has_many_requests_under_way_but_not_any_number() -> None:
    async def main() -> None:
        router = FakeRouter()
        async with serving(router) as address, grpc.aio.insecure_channel(address) as channel:
            call = stub(channel, "ModelStreamInfer")()

            async def write() -> None:
                for i in range(3 * STREAM_DEPTH):
                    await call.write(message(str(i), WAIT).SerializeToString())
                await call.done_writing()

            writer = asyncio.create_task(write())
            await until(lambda: router.running == STREAM_DEPTH)
            await asyncio.sleep(0.05)
            assert router.running == STREAM_DEPTH
            router.gate.set()
            ids = [response.infer_response.id async for response in call]
            await writer
            assert ids == [str(i) for i in range(3 * STREAM_DEPTH)]

    asyncio.run(main())


def test_a_stream_that_is_given_up_leaves_no_work() -> None:
    async def main() -> None:
        router = FakeRouter()
        async with serving(router) as address, grpc.aio.insecure_channel(address) as channel:
            call = stub(channel, "ModelStreamInfer")()
            for i in range(5):
                await call.write(message(str(i), WAIT).SerializeToString())
            await until(lambda: router.running == 5)
            call.cancel()
            await until(lambda: router.cancelled == 5)

    asyncio.run(main())


def test_bytes_that_are_no_message_do_not_end_the_server() -> None:
    async def main() -> None:
        async with serving(FakeRouter()) as address, grpc.aio.insecure_channel(address) as channel:
            junk = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            with pytest.raises(grpc.aio.AioRpcError):
                await junk(b"\xff\xff\xff")
            assert (await stub(channel)(message("r1"))).id == "r1"

    asyncio.run(main())


def test_routers_of_one_machine_share_the_port_and_others_are_told() -> None:
    async def main() -> None:
        reserved, port = free_port()
        service = service_of(FakeRouter())
        servers = [await serve_grpc(service, HttpConfig(), port, LIMITS) for _ in range(2)]
        for server in servers:
            await server.stop(0)
        reserved.close()
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(OSError, match="it is taken"):
                await serve_grpc(service, HttpConfig(), taken.getsockname()[1], LIMITS)

    asyncio.run(main())


class ServeContext:
    """What Serve gives for a context: no abort, no time."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}

    def set_code(self, code: grpc.StatusCode) -> None:
        self.told["code"] = code

    def set_details(self, details: str) -> None:
        self.told["details"] = details

    def set_trailing_metadata(self, metadata: list[tuple[str, str]]) -> None:
        self.told["metadata"] = metadata


class Ingress:
    """Stands for the Serve deployment."""


def test_the_methods_are_found_by_serve_on_the_ingress() -> None:
    async def main() -> None:
        ingress: Any = Ingress()
        mount(service_of(FakeRouter()), ingress)
        context = ServeContext()
        answer = await ingress.ModelInfer(message("r1"), grpc_context=context)
        assert answer.id == "r1"
        with pytest.raises(protocol.QueueFull):
            await ingress.ModelInfer(message(priority=4.0, accuracy=1.0), grpc_context=context)
        assert context.told == {
            "code": grpc.StatusCode.RESOURCE_EXHAUSTED,
            "details": "full",
            "metadata": [("retry-after", "2")],
        }

        async def requests() -> AsyncIterator[pb.ModelInferRequest]:
            yield message("a")
            yield message("b")

        answers = [a.infer_response.id async for a in ingress.ModelStreamInfer(requests(), grpc_context=context)]
        assert answers == ["a", "b"]

    asyncio.run(main())


def test_every_method_of_the_protocol_has_an_answer() -> None:
    added: list[str] = []

    class Server:
        def add_generic_rpc_handlers(self, handlers: Any) -> None:
            added.extend(handlers[0]._method_handlers)  # Serve's own servers read it so

    add_to_server(service_of(FakeRouter()), Server())
    assert added == [f"/inference.GRPCInferenceService/{name}" for name in METHODS]
    assert len(METHODS) == 12


def test_every_culprit_has_a_code() -> None:
    assert {kind for kind, _ in CODES} >= set(WireError.__subclasses__())
