/* As much of libcuda as edge_mbm/runtime/trt takes through pycuda, on a machine without a GPU: see pycuda_check.py.

   The GPU's memory is the host's; what is queued on a stream happens when somebody waits for it; every call but those
   about devices and contexts wants a current context, and is counted in "bad" without one. */

#include <stdlib.h>
#include <string.h>

typedef struct Op { void *to; const void *from; size_t size; void (*kernel)(void); struct Op *next; } Op;
typedef struct { Op *first; } Graph;
typedef struct { Graph queue, *captured; } Stream;

enum { INVALID_CONTEXT = 201, NOT_SUPPORTED = 801 };
static int primary, lost, live, bad, copies, kernels;
static __thread void *stack[64];
static __thread int depth;

static int check(void) { return lost ? lost : depth ? 0 : (bad++, INVALID_CONTEXT); }
#define CHECK int code = check(); if (code) return code

static void append(Graph *graph, Op op) {
    Op **end = &graph->first;
    while (*end) end = &(*end)->next;
    *end = malloc(sizeof op);
    **end = op;
}

static int queue(Stream *stream, Op op) {
    append(stream->captured ? stream->captured : &stream->queue, op);
    return 0;
}

/* for the check */
void fake_launch(Stream *stream, void (*kernel)(void)) { Op op = {0, 0, 0, kernel, 0}; queue(stream, op); }
void fake_lose(int code) { lost = code; }
int fake_live(void) { return live; }
int fake_bad(void) { return bad; }
int fake_copies(void) { return copies; }
int fake_kernels(void) { return kernels; }
int fake_depth(void) { return depth; }

/* devices and contexts */
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "no GPU", size); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = 0; return 0; }
int cuDeviceComputeCapability(int *major, int *minor, int device) { *major = 8; *minor = 7; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &primary; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxPushCurrent_v2(void *context) { stack[depth++] = context; return 0; }
int cuCtxPopCurrent_v2(void **context) {
    if (!depth) return INVALID_CONTEXT;
    *context = stack[--depth];
    return 0;
}
int cuCtxSynchronize(void) { return check(); }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuGetErrorName(int code, const char **name) { *name = "CUDA_ERROR_OF_THE_CHECK"; return 0; }
int cuGetErrorString(int code, const char **text) { *text = code == INVALID_CONTEXT ? "no context" : "lost"; return 0; }

/* memory */
int cuMemGetInfo_v2(size_t *unused, size_t *total) { CHECK; *unused = *total = 1ul << 30; return 0; }
int cuMemAlloc_v2(void **memory, size_t size) { CHECK; *memory = memset(malloc(size), 0xA5, size); live++; return 0; }
int cuMemFree_v2(void *memory) { CHECK; free(memory); live--; return 0; }
int cuMemHostAlloc(void **memory, size_t size, unsigned flags) { CHECK; *memory = calloc(1, size); live++; return 0; }
int cuMemFreeHost(void *memory) { CHECK; free(memory); live--; return 0; }
int cuMemHostGetDevicePointer_v2(void **there, void *here, unsigned flags) { CHECK; *there = here; return 0; }
int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t size, Stream *stream) {
    CHECK; Op op = {to, from, size, 0, 0}; return queue(stream, op);
}
int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t size, Stream *stream) {
    CHECK; Op op = {to, from, size, 0, 0}; return queue(stream, op);
}

int cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t size, Stream *stream) {
    CHECK; Op op = {to, from, size, 0, 0}; return queue(stream, op);
}
int cuMemcpyHtoD_v2(void *to, const void *from, size_t size) { CHECK; memcpy(to, from, size); return 0; }
int cuMemcpyDtoH_v2(void *to, const void *from, size_t size) { CHECK; memcpy(to, from, size); return 0; }
int cuMemsetD8Async(void *to, unsigned char value, size_t size, Stream *stream) {
    CHECK; Op op = {to, memset(malloc(size), value, size), size, 0, 0}; return queue(stream, op);
}

/* streams and events */
int cuStreamCreate(Stream **stream, unsigned flags) { CHECK; *stream = calloc(1, sizeof **stream); live++; return 0; }
int cuStreamDestroy_v2(Stream *stream) { CHECK; free(stream); live--; return 0; }
int cuStreamSynchronize(Stream *stream) {
    CHECK;
    for (Op *op = stream->queue.first; op; op = op->next) {
        if (op->kernel) op->kernel(), kernels++;
        else memcpy(op->to, op->from, op->size), copies++;
    }
    stream->queue.first = 0;
    return 0;
}
int cuEventCreate(void **event, unsigned flags) { CHECK; *event = calloc(1, 8); live++; return 0; }
int cuEventDestroy_v2(void *event) { CHECK; free(event); live--; return 0; }
int cuEventRecord(void *event, Stream *stream) { return check(); }
int cuEventElapsedTime(float *ms, void *start, void *end) { CHECK; *ms = 1.5f; return 0; }
int cuEventElapsedTime_v2(float *ms, void *start, void *end) { return cuEventElapsedTime(ms, start, end); }

/* graphs, which edge-mbm calls by itself */
int cuStreamBeginCapture_v2(Stream *stream, int mode) { CHECK; stream->captured = calloc(1, sizeof(Graph)); return 0; }
int cuStreamEndCapture(Stream *stream, Graph **graph) { CHECK; *graph = stream->captured; stream->captured = 0; return 0; }
int cuGraphInstantiateWithFlags(Graph **ready, Graph *graph, unsigned long long flags) {
    CHECK; *ready = malloc(sizeof **ready); **ready = *graph; live++; return 0;
}
int cuGraphDestroy(Graph *graph) { free(graph); return 0; }
int cuGraphExecDestroy(Graph *graph) { CHECK; free(graph); live--; return 0; }
int cuGraphLaunch(Graph *graph, Stream *stream) {
    CHECK;
    for (Op *op = graph->first; op; op = op->next) { Op again = *op; again.next = 0; append(&stream->queue, again); }
    return 0;
}
