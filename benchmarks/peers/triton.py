"""NVIDIA's Triton: the server that nvidia-pytriton carries, with a model repository and one of three backends."""

import shutil
import subprocess
import sys

from benchmarks.peers.environments import python_of
from benchmarks.peers.forms import Model
from benchmarks.peers.peer import HERE, MAX_BATCH, QUEUE_S, WAIT_S, Launch, Place

TRITON_MODEL = """name: "{name}"
backend: "{backend}"
max_batch_size: {batch}
input [ {{ name: "input" data_type: TYPE_FP32 dims: [ {dims} ] }} ]
output [ {{ name: "scores" data_type: TYPE_FP32 dims: [ {classes} ] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
dynamic_batching {{ max_queue_delay_microseconds: {wait} {policy} }}
"""
TRITON_POLICY = "default_queue_policy {{ timeout_action: REJECT default_timeout_microseconds: {timeout} }}"
TRITON_ORT = """parameters { key: "intra_op_thread_count" value: { string_value: "1" } }
parameters { key: "inter_op_thread_count" value: { string_value: "1" } }
"""


def triton_config(model: Model, backend: str, protected: bool, max_batch: int = MAX_BATCH) -> str:
    """Triton's config.pbtxt of a model."""
    text = TRITON_MODEL.format(
        name=model.name,
        backend=backend,
        batch=max_batch,
        dims=", ".join(str(n) for n in model.shape),
        classes=model.classes,
        wait=round(WAIT_S * 1e6),
        policy=TRITON_POLICY.format(timeout=round(QUEUE_S * 1e6)) if protected else "",
    )
    return text + (TRITON_ORT if backend == "onnxruntime" else "")


def _triton(place: Place, backend: str) -> Launch:
    python = python_of(place.cache, "triton")
    packages = python.parent.parent / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    carried, backends = packages / "pytriton" / "tritonserver", place.scratch / "backends"
    version = place.scratch / "models" / place.model.name / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(
        triton_config(place.model, backend, place.protected, place.max_batch), "utf-8"
    )
    if backend == "python":
        shutil.copy(HERE / "triton_python.py", version / "model.py")
        (version / HERE.parent.name).symlink_to(HERE.parent)  # its stub knows no PYTHONPATH
        shutil.copytree(carried / "backends" / "python", backends / "python")
        stub = carried / "python_backend_stubs" / packages.parent.name.removeprefix("python")
        shutil.copy(stub / "triton_python_backend_stub", backends / "python")
    else:
        (version / "model.onnx").symlink_to(place.model.path)
        backends.mkdir()
        (backends / backend).symlink_to(place.cache / f"triton-{backend}")
    ports = ("--http-port", str(place.port), "--http-address", "127.0.0.1", "--allow-grpc", "false")
    command = (str(carried / "bin" / "tritonserver"), "--model-repository", str(version.parent.parent))
    more = ("--backend-directory", str(backends), "--allow-metrics", "false", "--log-info", "false")
    libraries = str(packages / "nvidia_pytriton.libs")
    return Launch((*command, *ports, *more), {"LD_LIBRARY_PATH": libraries, "PATH_FIRST": str(python.parent)})


def triton_python(place: Place) -> Launch:
    return _triton(place, "python")


def triton_direct(place: Place) -> Launch:
    library = place.cache / "triton-direct" / "libtriton_direct.so"
    source = HERE / "triton_direct.cc"
    if not library.is_file() or library.stat().st_mtime < source.stat().st_mtime:
        library.parent.mkdir(exist_ok=True)
        wheel = place.cache / "environments" / "triton" / "lib"
        runtime = library.parent / "libonnxruntime.so.1"  # the name it has for itself; in the wheel it has another
        runtime.unlink(missing_ok=True)
        runtime.symlink_to(next(wheel.glob("*/site-packages/onnxruntime/capi/libonnxruntime.so.*")))
        options = ("-O2", "-std=c++17", "-shared", "-fPIC", "-Wl,-rpath,$ORIGIN")
        subprocess.run(["g++", *options, "-o", library, source, runtime], check=True)
    return _triton(place, "direct")


def triton_onnxruntime(place: Place) -> Launch:
    return _triton(place, "onnxruntime")
