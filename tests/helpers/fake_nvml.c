/* A libnvidia-ml with two GPUs at 0000:01:00.0 and 0000:42:00.0, whose common state the test sets: `fake_set(key, value)`, `fake_fail(function, code)`. */
#include <string.h>

enum { SUCCESS = 0, UNINITIALISED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, SMALL = 7 };

typedef struct { unsigned pid; unsigned long long memory; unsigned instance, compute_instance; } process;
typedef struct { unsigned long long reference_us, violation_ns; } violation;

static int opened, gpus[2];
static unsigned gpu_count = 2;
static unsigned long long reasons, violations[12];
static unsigned clocks[3] = {210, 210, 405}, highest[3] = {2000, 2000, 7000};
static unsigned celsius = 45, slowdown = 90, milliwatts = 30500, limit_mw = 80000;
static unsigned pids[4], pid_count;
static char failing[256];
static int failing_code;

int fake_open_count(void) { return opened; }
void fake_fail(const char *function, int code) { strncpy(failing, function, sizeof failing - 1); failing_code = code; }

void fake_set(const char *key, unsigned long long value) {
    if (!strcmp(key, "reasons")) reasons = value;
    else if (!strcmp(key, "power_ns")) violations[0] = value;
    else if (!strcmp(key, "sm_mhz")) clocks[1] = (unsigned)value;
    else if (!strcmp(key, "celsius")) celsius = (unsigned)value;
    else if (!strcmp(key, "gpu_count")) gpu_count = (unsigned)value;
    else if (!strcmp(key, "pid")) { pids[0] = (unsigned)value; pid_count = value ? 1 : 0; }
    else if (!strcmp(key, "second_pid")) { pids[1] = (unsigned)value; pid_count = 2; }
}

#define GUARD(name) \
    if (!strcmp(failing, name)) return failing_code; \
    if (!opened) return UNINITIALISED

int nvmlInit_v2(void) { if (!strcmp(failing, "nvmlInit_v2")) return failing_code; opened++; return SUCCESS; }
int nvmlShutdown(void) { if (!opened) return UNINITIALISED; opened--; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    GUARD("nvmlDeviceGetHandleByIndex_v2");
    if (index >= gpu_count) return INVALID;
    *device = &gpus[index];
    return SUCCESS;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, void **device) {
    GUARD("nvmlDeviceGetHandleByPciBusId_v2");
    for (unsigned index = 0; index < gpu_count; index++)
        if (!strcmp(bus_id, index ? "00000000:42:00.0" : "00000000:01:00.0")) {
            *device = &gpus[index];
            return SUCCESS;
        }
    return NOT_FOUND;
}
int nvmlDeviceGetCount_v2(unsigned *count) {
    GUARD("nvmlDeviceGetCount_v2");
    *count = gpu_count;
    return SUCCESS;
}

#define DEVICE(name) GUARD(name); if (device != (void *)&gpus[0] && device != (void *)&gpus[1]) return INVALID

int nvmlDeviceGetIndex(void *device, unsigned *index) {
    DEVICE("nvmlDeviceGetIndex");
    *index = device == (void *)&gpus[1];
    return SUCCESS;
}

int nvmlDeviceGetName(void *device, char *text, unsigned size) {
    DEVICE("nvmlDeviceGetName");
    strncpy(text, device == (void *)&gpus[1] ? "NVIDIA Second GPU" : "NVIDIA Fake GPU", size);
    return SUCCESS;
}
int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    GUARD("nvmlSystemGetDriverVersion");
    strncpy(text, "570.10.1", size);
    return SUCCESS;
}
int nvmlDeviceGetClockInfo(void *device, int kind, unsigned *mhz) {
    DEVICE("nvmlDeviceGetClockInfo");
    if (kind < 0 || kind > 2) return INVALID;
    *mhz = clocks[kind];
    return SUCCESS;
}
int nvmlDeviceGetMaxClockInfo(void *device, int kind, unsigned *mhz) {
    DEVICE("nvmlDeviceGetMaxClockInfo");
    *mhz = highest[kind];
    return SUCCESS;
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *value) {
    DEVICE("nvmlDeviceGetTemperature");
    if (sensor) return INVALID;
    *value = celsius;
    return SUCCESS;
}
int nvmlDeviceGetTemperatureThreshold(void *device, int kind, unsigned *value) {
    DEVICE("nvmlDeviceGetTemperatureThreshold");
    *value = kind == 1 ? slowdown : 95;
    return SUCCESS;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *value) {
    DEVICE("nvmlDeviceGetPowerUsage");
    *value = milliwatts;
    return SUCCESS;
}
int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *value) {
    DEVICE("nvmlDeviceGetEnforcedPowerLimit");
    *value = limit_mw;
    return SUCCESS;
}
int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *bits) {
    DEVICE("nvmlDeviceGetCurrentClocksEventReasons");
    *bits = reasons;
    return SUCCESS;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *bits) {
    if (!strcmp(failing, "nvmlDeviceGetCurrentClocksEventReasons") && failing_code == NOT_SUPPORTED) return NOT_SUPPORTED;
    *bits = reasons;
    return SUCCESS;
}
int nvmlDeviceGetViolationStatus(void *device, int policy, violation *status) {
    DEVICE("nvmlDeviceGetViolationStatus");
    if (policy == 3) return NOT_SUPPORTED;
    status->reference_us = 1;
    status->violation_ns = violations[policy];
    return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process *found) {
    DEVICE("nvmlDeviceGetComputeRunningProcesses_v3");
    if (*count < pid_count) return SMALL;
    for (unsigned index = 0; index < pid_count; index++) found[index] = (process){pids[index], 1 << 20, 0, 0};
    *count = pid_count;
    return SUCCESS;
}
int nvmlDeviceGetSupportedMemoryClocks(void *device, unsigned *count, unsigned *mhz) {
    DEVICE("nvmlDeviceGetSupportedMemoryClocks");
    if (*count < 2) return SMALL;
    mhz[0] = 7000; mhz[1] = 405;
    *count = 2;
    return SUCCESS;
}
int nvmlDeviceGetSupportedGraphicsClocks(void *device, unsigned memory, unsigned *count, unsigned *mhz) {
    DEVICE("nvmlDeviceGetSupportedGraphicsClocks");
    if (memory != 7000) return INVALID;
    for (unsigned index = 0; index < 121; index++) mhz[index] = 2000 - 15 * index;
    *count = 121;
    return SUCCESS;
}
