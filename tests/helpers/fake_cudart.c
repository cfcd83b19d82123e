/* A CUDA runtime on a virtual clock: the functions that hwprune calls, one GPU, one stream at a time.
 *
 * Two clocks run: the host's, which every call moves on by what it costs, and the GPU's, which follows the stream.
 * Device memory is host memory, so that a test can compute in it. Disturbances, refusals and sticky errors are set by
 * name with fake_set. Compiled by the tests with: cc -shared -fPIC -O1 -o libcudart_fake.so fake_cudart.c -lm
 */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef void (*callback)(long);
typedef struct { double ns; double flips; callback run; long argument; } node;
typedef struct { node *nodes; size_t count, room; } graph;
typedef struct { double ns; int recorded; } event;

enum { OUT_OF_MEMORY = 2, INVALID = 400, CAPTURING = 900, CAPTURE_INVALIDATED = 901 };
enum { MALLOCS, STREAMS, EVENTS, GRAPHS, EXECUTABLES, KINDS };

static struct {
    double host_ns, gpu_ns, wander, kernels, throttle_events;
    unsigned long long random;
    int sticky, last;
    graph *capturing;
    int capture_broken;
    long live[KINDS];
} now;

/* name, value at the beginning */
#define SETTINGS(X) \
    X(launch_ns, 2500) X(graph_launch_ns, 3500) X(record_ns, 400) X(sync_ns, 1000) X(call_ns, 300) X(gap_ns, 800) \
    X(resolution_ns, 500) X(jitter, 0) X(wander, 0) X(spikes, 0) X(drift, 0) X(drift_period_s, 60) X(flip_rise, 0) \
    X(flip_s, 1) X(throttle_rise, 0) X(throttle_from_s, 0) X(throttle_to_s, 0) X(dead_from_s, 0) X(dead_to_s, 0) \
    X(seed, 0) X(sticky_after, -1) X(sticky_code, 700) X(capture_error, 0) X(count_error, 0) X(devices, 1) \
    X(pci_bus, 1) X(driver, 12060) X(memory_left, -1) X(capability, 8.7) X(flags_error, 0) \
    X(graph_node_ns, 0) X(own_runtimes, 0)
#define FIELD(name, standard) double name;
static struct { SETTINGS(FIELD) } set;

int fake_set(const char *name, double value) {
#define ASSIGN(field, standard) if (!strcmp(name, #field)) { set.field = value; found = 0; }
    int found = -1;
    SETTINGS(ASSIGN)
    if (!strcmp(name, "seed")) now.random = 0x9E3779B97F4A7C15ull * ((unsigned long long)value + 1);
    return found;
}

void fake_reset(void) {
    memset(&now, 0, sizeof now);
#define RESTORE(field, standard) set.field = standard;
    SETTINGS(RESTORE)
    fake_set("seed", 0);
}

static _Thread_local int device; /* what CUDA keeps for each thread */
static unsigned flags;

int fake_device(void) { return device; }
unsigned fake_flags(void) { return flags; }
double fake_now_s(void) { return now.host_ns / 1e9; }
void fake_pass(double seconds) { now.host_ns += 1e9 * seconds; }
long fake_live(int kind) { return now.live[kind]; }
long fake_kernels(void) { return (long)now.kernels; }
long fake_throttle_events(void) { return (long)now.throttle_events; }

static double uniform(void) {
    now.random ^= now.random << 13; now.random ^= now.random >> 7; now.random ^= now.random << 17;
    return ((now.random >> 11) + 0.5) / 9007199254740992.0;
}

static double normal(void) { return sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform()); }

static int during(double from_s, double to_s, double at_s) { return from_s <= at_s && at_s < to_s; }

/* How much longer than undisturbed everything in one launch takes. */
static double factor(double flips) {
    double at_s = fmax(now.gpu_ns, now.host_ns) / 1e9, found = 1;
    if (set.jitter > 0) found += set.jitter * normal();
    if (set.wander > 0) {
        now.wander = 0.9 * now.wander + sqrt(1 - 0.81) * set.wander * normal();
        found *= 1 + now.wander;
    }
    if (set.drift > 0) found *= 1 + set.drift * sin(6.283185307179586 * at_s / set.drift_period_s);
    if (set.spikes > 0 && uniform() < set.spikes) found *= 1.5 + 8.5 * uniform();
    if (flips > 0 && set.flip_rise > 0 && (long)(at_s / set.flip_s) % 2) found *= 1 + set.flip_rise;
    if (during(set.throttle_from_s, set.throttle_to_s, at_s)) {
        found *= 1 + set.throttle_rise;
        now.throttle_events++;
    }
    return fmax(found, 0.1);
}

static int finish(int code) {
    now.host_ns += set.call_ns;
    if (now.sticky) return now.sticky;
    if (code) now.last = code;
    return code;
}

static void execute(const node *item, double scale) {
    if (item->run) { item->run(item->argument); return; }
    now.gpu_ns = fmax(now.gpu_ns, now.host_ns) + (set.gap_ns + item->ns) * scale;
    now.kernels++;
    if (set.sticky_after >= 0 && now.kernels > set.sticky_after) now.sticky = (int)set.sticky_code;
}

static int enqueue(node item) {
    if (now.sticky) return now.sticky;
    if (now.last) return now.last; /* what a library finds that asks for the last error: an earlier one, not cleared */
    if (now.capturing) {
        graph *g = now.capturing;
        if (g->count == g->room) g->nodes = realloc(g->nodes, (g->room = 2 * g->room + 16) * sizeof *g->nodes);
        g->nodes[g->count++] = item;
        return 0;
    }
    if (!item.run) now.host_ns += set.launch_ns;
    execute(&item, item.run ? 1 : factor(item.flips));
    return now.sticky;
}

/* For the fake TensorRT: one kernel of so many nanoseconds, or a function of the test as a node. */
int fake_kernel(double ns, int flips) { return enqueue((node){ns, flips, NULL, 0}); }
int fake_call(callback run, long argument) { return enqueue((node){0, 0, run, argument}); }

static int forbidden(void) { /* what must not be called while a stream is captured */
    if (now.capturing) now.capture_broken = 1;
    return now.capturing ? CAPTURING : 0;
}

int cudaGetDeviceCount(int *count) {
    *count = (int)set.devices;
    return (int)set.count_error;
}
int cudaSetDevice(int index) {
    if (index < set.devices) device = index;
    return finish(index < set.devices ? 0 : 101);
}
int cudaSetDeviceFlags(unsigned wanted) {
    if (set.flags_error <= 0) flags = wanted;
    return finish((int)set.flags_error);
}
int cudaDeviceGetAttribute(int *value, int attribute, int index) {
    int tenths = (int)(10 * set.capability + 0.5);
    *value = attribute == 16 ? 14 : attribute == 75 ? tenths / 10 : attribute == 76 ? tenths % 10
           : attribute == 38 ? 4 << 20 : attribute == 33 ? (int)set.pci_bus + index : 0;
    return finish(index < set.devices ? 0 : 101);
}
int cudaMemGetInfo(size_t *available, size_t *total) {
    *available = *total = (size_t)8 << 30;
    return finish(0);
}
int cudaRuntimeGetVersion(int *version) { *version = 12060; return finish(0); }
int cudaDriverGetVersion(int *version) { *version = (int)set.driver; return finish(0); }
int cudaGetLastError(void) { /* with own_runtimes another library's errors are not seen here */
    int code = now.sticky && !set.own_runtimes ? now.sticky : now.last;
    now.last = 0;
    return code;
}
int cudaDeviceSynchronize(void) {
    now.host_ns = fmax(now.host_ns, now.gpu_ns);
    return finish(forbidden());
}
int cudaMalloc(void **address, size_t size) {
    int code = forbidden();
    if (!code && set.memory_left >= 0 && size > set.memory_left) code = OUT_OF_MEMORY;
    if (code || now.sticky) return finish(code);
    *address = malloc(size);
    now.live[MALLOCS]++;
    return finish(0);
}
int cudaFree(void *address) {
    if (now.sticky) return finish(0);
    free(address);
    now.live[MALLOCS]--;
    return finish(forbidden());
}
int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
    int code = forbidden();
    if (!code && !now.sticky) memcpy(to, from, size);
    return finish(kind == 1 || kind == 2 ? code : INVALID);
}
int cudaStreamCreateWithFlags(void **stream, unsigned flags) {
    *stream = (void *)(0x1000 + (size_t)flags);
    now.live[STREAMS]++;
    return finish(0);
}
int cudaStreamDestroy(void *stream) { now.live[STREAMS]--; return finish(stream ? 0 : INVALID); }
int cudaStreamSynchronize(void *stream) {
    int code = stream ? forbidden() : INVALID;
    now.host_ns = fmax(now.host_ns, now.gpu_ns) + set.sync_ns;
    return finish(code);
}
int cudaStreamBeginCapture(void *stream, int mode) {
    if (!stream || now.capturing) return finish(INVALID);
    now.capturing = calloc(1, sizeof(graph));
    now.capture_broken = 0;
    return finish(mode == 1 ? 0 : INVALID);
}
int cudaStreamEndCapture(void *stream, void **out) {
    graph *g = now.capturing;
    now.capturing = NULL;
    *out = NULL;
    if (!g || !stream) return finish(INVALID);
    if (set.capture_error > 0 || now.capture_broken) {
        free(g->nodes);
        free(g);
        return finish(now.capture_broken ? CAPTURE_INVALIDATED : (int)set.capture_error);
    }
    now.live[GRAPHS]++;
    *out = g;
    return finish(0);
}
int cudaEventCreateWithFlags(void **out, unsigned flags) {
    *out = calloc(1, sizeof(event));
    now.live[EVENTS]++;
    return finish(flags ? INVALID : 0);
}
int cudaEventDestroy(void *e) { free(e); now.live[EVENTS]--; return finish(0); }
int cudaEventRecord(void *e, void *stream) {
    event *item = e;
    now.host_ns += set.record_ns;
    item->ns = fmax(now.host_ns, now.gpu_ns);
    if (during(set.dead_from_s, set.dead_to_s, item->ns / 1e9)) item->ns = 1e9 * set.dead_from_s;
    item->recorded = 1;
    return finish(stream ? 0 : INVALID);
}
int cudaEventElapsedTime(float *ms, void *begin, void *end) {
    event *a = begin, *b = end;
    double step = fmax(set.resolution_ns, 1e-9);
    if (!a->recorded || !b->recorded || fmax(a->ns, b->ns) > now.host_ns + 1) return finish(600); /* not ready */
    *ms = (float)((floor(b->ns / step) - floor(a->ns / step)) * step / 1e6);
    return finish(0);
}
int cudaGraphInstantiateWithFlags(void **out, void *from, unsigned long long flags) {
    graph *copy = calloc(1, sizeof *copy), *g = from;
    copy->nodes = malloc((g->count + 1) * sizeof *copy->nodes);
    copy->count = copy->room = g->count;
    memcpy(copy->nodes, g->nodes, g->count * sizeof *copy->nodes);
    now.live[EXECUTABLES]++;
    *out = copy;
    return finish(flags ? INVALID : 0);
}
int cudaGraphLaunch(void *executable, void *stream) {
    graph *g = executable;
    double scale = 1, flips = 0;
    if (now.sticky || !stream) return finish(INVALID);
    now.host_ns += set.graph_launch_ns + set.graph_node_ns * (double)g->count;
    for (size_t i = 0; i < g->count; i++) flips = fmax(flips, g->nodes[i].flips);
    scale = factor(flips);
    for (size_t i = 0; i < g->count; i++) execute(&g->nodes[i], scale);
    return finish(0);
}
int cudaGraphGetNodes(void *from, void *nodes, size_t *count) {
    graph *g = from;
    size_t kernels = 0;
    for (size_t i = 0; i < g->count; i++) kernels += !g->nodes[i].run;
    *count = kernels;
    return finish(nodes ? INVALID : 0);
}
static int destroy(graph *g, int kind) {
    free(g->nodes);
    free(g);
    now.live[kind]--;
    return finish(0);
}
int cudaGraphDestroy(void *g) { return destroy(g, GRAPHS); }
int cudaGraphExecDestroy(void *g) { return destroy(g, EXECUTABLES); }
const char *cudaGetErrorName(int code) {
    return code == 700 ? "cudaErrorIllegalAddress" : code == 2 ? "cudaErrorMemoryAllocation"
         : code == 35 ? "cudaErrorInsufficientDriver" : code == 900 ? "cudaErrorStreamCaptureUnsupported"
         : "cudaErrorUnknown";
}
const char *cudaGetErrorString(int code) { return code == 700 ? "an illegal memory access was encountered" : "see its name"; }
