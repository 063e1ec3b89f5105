// A Triton backend that calls onnxruntime's C API and nothing else; Triton's own is in no package that pip can install.
//
// Compiled by catalogue.py against the libonnxruntime of pip. Neither interface's header comes with these packages, so
// what is used of them is declared here: names and signatures of tritonbackend.h (API 1.x), places in onnxruntime's
// table of functions (which only ever grows). MODEL, CLASSES, SLOWDOWN: see session.py.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#include <time.h>
#include <unistd.h>

extern "C" {
struct TRITONSERVER_Error;
struct TRITONBACKEND_ModelInstance;
struct TRITONBACKEND_Request;
struct TRITONBACKEND_Response;
struct TRITONBACKEND_Input;
struct TRITONBACKEND_Output;
TRITONSERVER_Error* TRITONSERVER_ErrorNew(int code, const char* message);
TRITONSERVER_Error* TRITONBACKEND_RequestInputByIndex(TRITONBACKEND_Request*, uint32_t index, TRITONBACKEND_Input**);
TRITONSERVER_Error* TRITONBACKEND_RequestRelease(TRITONBACKEND_Request*, uint32_t flags);
TRITONSERVER_Error* TRITONBACKEND_InputProperties(
    TRITONBACKEND_Input*, const char** name, int* type, const int64_t** shape, uint32_t* dims, uint64_t* bytes,
    uint32_t* buffers);
TRITONSERVER_Error* TRITONBACKEND_InputBuffer(
    TRITONBACKEND_Input*, uint32_t index, const void** buffer, uint64_t* bytes, int* memory, int64_t* memory_id);
TRITONSERVER_Error* TRITONBACKEND_ResponseNew(TRITONBACKEND_Response**, TRITONBACKEND_Request*);
TRITONSERVER_Error* TRITONBACKEND_ResponseOutput(
    TRITONBACKEND_Response*, TRITONBACKEND_Output**, const char* name, int type, const int64_t* shape, uint32_t dims);
TRITONSERVER_Error* TRITONBACKEND_OutputBuffer(
    TRITONBACKEND_Output*, void** buffer, uint64_t bytes, int* memory, int64_t* memory_id);
TRITONSERVER_Error* TRITONBACKEND_ResponseSend(TRITONBACKEND_Response*, uint32_t flags, TRITONSERVER_Error*);

struct OrtApiBase {
  void** (*get_api)(uint32_t version);
  const char* (*version)();
};
const OrtApiBase* OrtGetApiBase();
}

namespace {
constexpr int kInternal = 1, kFp32 = 11, kFinal = 1, kAll = 1, kOrtFloat = 1;
void **api, *session, *memory;  // one model instance
int64_t classes;
double slowdown = 1;

double Now(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return now.tv_sec + 1e-9 * now.tv_nsec;
}

// One entry of onnxruntime's table; a status that is not null is an error.
template <typename... Types>
void* Call(int place, Types... values) {
  return reinterpret_cast<void* (*)(Types...)>(api[place])(values...);
}
enum { kCreateEnv = 3, kCreateSession = 7, kRun = 9, kCreateOptions = 10, kIntraOp = 24, kInterOp = 25 };
enum { kTensorOfData = 49, kDataOfTensor = 51, kCpuMemory = 69, kReleaseValue = 96 };

bool Infer(std::vector<float>& x, const std::vector<int64_t>& shape, std::vector<float>& scores) {
  void *input = nullptr, *output = nullptr, *data = nullptr;
  if (Call(kTensorOfData, memory, (void*)x.data(), x.size() * sizeof(float), shape.data(), shape.size(), kOrtFloat,
           &input))
    return false;
  const char *in = "input", *out = "scores";
  void* failed = Call(kRun, session, (void*)nullptr, &in, &input, (size_t)1, &out, (size_t)1, &output);
  if (!failed) failed = Call(kDataOfTensor, output, &data);
  if (!failed) scores.assign((float*)data, (float*)data + shape[0] * classes);
  if (output) Call(kReleaseValue, output);
  Call(kReleaseValue, input);
  return !failed;
}

// Infer, and wait until a device that is slower than this one would be done; as session.py does.
bool InferSlowly(std::vector<float>& x, const std::vector<int64_t>& shape, std::vector<float>& scores) {
  static std::map<int64_t, double> least;
  double begun = Now(CLOCK_MONOTONIC);
  int repeats = least.count(shape[0]) ? 1 : slowdown < 20 ? (int)slowdown : 20;
  bool good = true;
  for (int i = 0; i < repeats && good; ++i) {
    double cpu = Now(CLOCK_THREAD_CPUTIME_ID);
    good = Infer(x, shape, scores);
    cpu = Now(CLOCK_THREAD_CPUTIME_ID) - cpu;
    if (!least.count(shape[0]) || cpu < least[shape[0]]) least[shape[0]] = cpu;
  }
  double left = begun + slowdown * least[shape[0]] - Now(CLOCK_MONOTONIC);
  if (slowdown > 1 && left > 0) usleep(1e6 * left);
  return good;
}
}  // namespace

extern "C" {
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance*) {
  void *environment = nullptr, *options = nullptr;
  api = OrtGetApiBase()->get_api(17);
  classes = atoll(getenv("CLASSES"));
  if (getenv("SLOWDOWN")) slowdown = atof(getenv("SLOWDOWN"));
  const char* path = getenv("MODEL");
  if (Call(kCreateEnv, 3, "direct", &environment) || Call(kCreateOptions, &options) || Call(kIntraOp, options, 1) ||
      Call(kInterOp, options, 1) || Call(kCreateSession, environment, path, options, &session) ||
      Call(kCpuMemory, 1, 0, &memory))
    return TRITONSERVER_ErrorNew(kInternal, "onnxruntime cannot load MODEL");
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(
    TRITONBACKEND_ModelInstance*, TRITONBACKEND_Request** requests, uint32_t count) {
  static std::vector<float> x, scores;
  std::vector<int64_t> whole, rows;
  x.clear();
  for (uint32_t i = 0; i < count; ++i) {
    TRITONBACKEND_Input* input;
    const int64_t* shape;
    uint32_t dims, buffers;
    TRITONBACKEND_RequestInputByIndex(requests[i], 0, &input);
    TRITONBACKEND_InputProperties(input, nullptr, nullptr, &shape, &dims, nullptr, &buffers);
    whole.assign(shape, shape + dims);
    rows.push_back(shape[0]);
    for (uint32_t b = 0; b < buffers; ++b) {
      const void* data;
      uint64_t bytes;
      int kind = 0;
      int64_t id = 0;
      TRITONBACKEND_InputBuffer(input, b, &data, &bytes, &kind, &id);
      size_t at = x.size();
      x.resize(at + bytes / sizeof(float));
      memcpy(x.data() + at, data, bytes);
    }
  }
  whole[0] = 0;
  for (int64_t n : rows) whole[0] += n;
  bool good = InferSlowly(x, whole, scores);
  const float* next = scores.data();
  for (uint32_t i = 0; i < count; ++i) {
    TRITONBACKEND_Response* response;
    TRITONBACKEND_ResponseNew(&response, requests[i]);
    TRITONSERVER_Error* error = good ? nullptr : TRITONSERVER_ErrorNew(kInternal, "onnxruntime failed");
    if (good) {
      TRITONBACKEND_Output* output;
      int64_t shape[] = {rows[i], classes};
      void* buffer;
      int kind = 0;
      int64_t id = 0;
      uint64_t bytes = rows[i] * classes * sizeof(float);
      TRITONBACKEND_ResponseOutput(response, &output, "scores", kFp32, shape, 2);
      TRITONBACKEND_OutputBuffer(output, &buffer, bytes, &kind, &id);
      memcpy(buffer, next, bytes);
      next += rows[i] * classes;
    }
    TRITONBACKEND_ResponseSend(response, kFinal, error);
    TRITONBACKEND_RequestRelease(requests[i], kAll);
  }
  return nullptr;
}
}
