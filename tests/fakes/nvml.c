/* A fake libnvidia-ml.so.1 with physics: the NVML functions that the Python binding calls, on scripted GPUs.
 *
 * A GPU is a power trajectory whose integral is exact; counters and power readings are what a driver would show of
 * it. Every answer is a function of time, so the rate of polling changes nothing unless the script says so.
 *
 * A script has one directive a line; `#` starts a comment line; times in seconds; TO defaults to for ever:
 *   clock virtual [START]           moved by fake_nvml_set_ns and by what calls cost (the default, from 0)
 *   clock real ORIGIN               time zero is that second of CLOCK_MONOTONIC, so that processes agree
 *   driver VERSION
 *   gpu UUID NAME                   opens a GPU; what follows describes it
 *   power step|linear T W [T W ...] also temperature_c, sm_clock_mhz; constant before the first and after the last
 *   SCALAR NUMBER                   see SCALARS; before any `gpu`: the default of all GPUs
 *   error NAME CODE [FROM [TO]]     a function or a field fails; before any `gpu`: on all GPUs and on the system
 *   lost [FROM [TO]]                every call on this GPU fails with 15
 *   reset AT                        the counter restarts from 0
 *   frozen FROM [TO]                the counter stands still
 *   jump JOULES AT                  the counter, not the card, gains that much
 *   nonsense MILLIWATTS [FROM [TO]] what power answers instead, with success
 *   throttled FIELD SHARE FROM [TO] the field counts this share of the time
 *   compute|graphics|mps PID [FROM [TO]]
 *
 * A power limit L and locked clocks bind: of a trajectory P at a clock f, whose power is all dynamic, P ~ f^3, a clock
 * locked at c < f leaves P (c/f)^3, and a limit L < P leaves L, at the clock f (L/P)^(1/3); meanwhile the software power
 * cap throttles. What is set is the driver's, not a process's: processes with one FAKE_NVML_SCRIPT share it in the file
 * SCRIPT.set, and each sees a change at its next call. Of MAX_GPUS cards, there: limit in W or 0, clock in MHz or 0,
 * how often either was set.
 */
#define _GNU_SOURCE /* dladdr */
#include <dlfcn.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS, UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND = 6, INSUFFICIENT_SIZE,
       DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, UNKNOWN = 999 };
enum { ENERGY = 83, POWER_AVERAGE = 185, POWER_INSTANT = 186, MAX_GPUS = 16, MAX_SPANS = 128, MAX_SETS = 64 };
#define LENGTH(array) (sizeof(array) / sizeof *(array))

typedef struct { int64_t at_ns; double value, area; } point; /* area: integral from the first point, value × ns */
typedef struct { int linear; size_t count; point *points; } curve;
typedef struct { const char *kind; char word[64]; double number; int64_t from_ns, to_ns; } span;
typedef struct { double limit_w, clock_mhz, times; } set; /* what somebody has set, in place of the script's; 0: nothing */
typedef struct { int64_t from_ns; double limit_w, clock_mhz; } held; /* since when this process knows it */
typedef struct {
    char uuid[80], name[96];
    curve power, temperature_c, sm_clock_mhz;
    double gain, counter_gain, tick_s, phase_s, counter_start_j, wrap_mj, repeat_s, sampling_s, duty_s, average_s, noise_w,
        noise_seed, shortest_poll_s, too_fast_code, module_w, power_limit_w,
        default_power_limit_w, min_power_limit_w, max_power_limit_w, max_sm_clock_mhz, memory_clock_mhz,
        slowdown_c, shutdown_c, memory_bytes, memory_used_bytes, mig, ecc, compute_mode, compute_capability, call_s,
        persistent;
    size_t span_count;
    span spans[MAX_SPANS];
    size_t held_count;
    held held[MAX_SETS];
    int polled;
    int64_t polled_ns;
} gpu;

#define SCALAR(name, usual) {#name, offsetof(gpu, name), usual}
static const struct { const char *name; size_t offset; double usual; } SCALARS[] = {
    SCALAR(call_s, 0),     /* what each call costs; it answers as of its middle. Before any `gpu` only. */
    SCALAR(persistent, 1), /* 0: the driver unloads with its last client, counters restart. Before any `gpu` only. */
    SCALAR(gain, 1), SCALAR(counter_gain, 1), /* of the counter alone, beside the gain of all sensors */
    SCALAR(tick_s, 0.1), SCALAR(phase_s, 0), SCALAR(counter_start_j, 0),
    SCALAR(wrap_mj, 0),         /* modulus of the counter; 0: never wraps */
    SCALAR(repeat_s, 0),        /* period of the power trajectory; 0: does not repeat */
    SCALAR(sampling_s, 0.1), SCALAR(duty_s, 0.025), /* instant power is the mean over the end of each period */
    SCALAR(noise_w, 0), SCALAR(noise_seed, 0),      /* standard deviation, on instant power */
    SCALAR(average_s, 1),
    SCALAR(shortest_poll_s, 0), SCALAR(too_fast_code, 0), /* a power read that comes too soon: 0 W, or an error */
    SCALAR(module_w, -1),       /* power of scope 1 above scope 0, which the counter then holds too; negative: no scope 1 */
    SCALAR(power_limit_w, 400), SCALAR(default_power_limit_w, 400), SCALAR(min_power_limit_w, 10),
    SCALAR(max_power_limit_w, 400), SCALAR(max_sm_clock_mhz, 1410), SCALAR(memory_clock_mhz, 1215),
    SCALAR(slowdown_c, 90), SCALAR(shutdown_c, 95), SCALAR(memory_bytes, 80e9), SCALAR(memory_used_bytes, 1e9),
    SCALAR(mig, 0), SCALAR(ecc, 1), SCALAR(compute_mode, 0),
    SCALAR(compute_capability, 0), /* 8.6; 0: not told */
};
#define CURVE(name) {#name, offsetof(gpu, name)}
static const struct { const char *name; size_t offset; } CURVES[] = {
    CURVE(power), CURVE(temperature_c), CURVE(sm_clock_mhz)};
static const struct { const char *name; int word, number, times; } SPANS[] = { /* what a line must have */
    {"error", 1, 1, 0}, {"lost", 0, 0, 0}, {"reset", 0, 0, 1}, {"frozen", 0, 0, 1}, {"throttled", 1, 1, 1},
    {"jump", 0, 1, 1}, {"nonsense", 0, 1, 0},
    {"compute", 0, 1, 0}, {"graphics", 0, 1, 0}, {"mps", 0, 1, 0}};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static gpu gpus[MAX_GPUS], everything; /* everything: defaults, and failures that all share */
static set own_sets[MAX_GPUS], *sets = own_sets;
static unsigned gpu_count;
static int loaded, clients, real_clock;
static int64_t virtual_ns, origin_ns, driver_loaded_ns;
static long calls;
static char driver_version[80], mistake[300];

/* ---- time and physics */

static int64_t ns(double seconds)
{
    return seconds >= 9e9 ? INT64_MAX : seconds <= -9e9 ? INT64_MIN : llround(seconds * 1e9);
}

static int64_t clock_ns(void)
{
    struct timespec t;
    if (!real_clock) return virtual_ns;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec - origin_ns;
}

static int64_t floor_to(int64_t value, int64_t step)
{
    int64_t over = value % step;
    return value - over - (over < 0 ? step : 0);
}

/* Value (area = 0) or integral from the first point (area = 1). */
static double evaluate(const curve *c, int64_t at_ns, int area)
{
    size_t low = 0, high = c->count;
    if (!c->count) return 0;
    while (high - low > 1) { /* the last point at or before `at_ns`, else the first */
        size_t middle = (low + high) / 2;
        if (c->points[middle].at_ns <= at_ns) low = middle; else high = middle;
    }
    const point *p = &c->points[low];
    double after = (double)(at_ns - p->at_ns), slope = 0;
    if (c->linear && after > 0 && low + 1 < c->count)
        slope = (p[1].value - p->value) / (double)(p[1].at_ns - p->at_ns);
    return area ? p->area + p->value * after + slope * after * after / 2 : p->value + slope * after;
}

/* True energy since time zero, were nothing set. Watts × nanoseconds keep whole numbers exact: floors fall where they
 * should. */
static double unset_nj(const gpu *g, int64_t at_ns)
{
    int64_t period = ns(g->repeat_s), start = period ? floor_to(at_ns, period) : 0;
    double zero = evaluate(&g->power, 0, 1), whole = period ? evaluate(&g->power, period, 1) - zero : 0;
    return evaluate(&g->power, at_ns - start, 1) - zero + (period ? (double)(start / period) * whole : 0);
}

static double unset_w(const gpu *g, int64_t at_ns)
{
    int64_t period = ns(g->repeat_s);
    return evaluate(&g->power, period ? at_ns - floor_to(at_ns, period) : at_ns, 0);
}

/* What is left of a power by locked clocks: (c/f)^3. */
static double slowed(const gpu *g, const held *h)
{
    double c = h->clock_mhz, f = g->max_sm_clock_mhz;
    return c > 0 && c < f ? pow(c / f, 3) : 1;
}

/* A limit that is no lower than the script's own changes nothing. */
static int can_bind(const gpu *g, const held *h) { return h->limit_w > 0 && h->limit_w < g->power_limit_w; }

/* Where the trajectory takes another value next, after `at_ns`; curves that bind are steps. */
static int64_t next_step(const gpu *g, int64_t at_ns)
{
    int64_t period = ns(g->repeat_s), start = period ? floor_to(at_ns, period) : 0;
    for (const point *p = g->power.points; p < g->power.points + g->power.count; p++)
        if (p->at_ns > at_ns - start && (!period || p->at_ns < period)) return start + p->at_ns;
    return period ? start + period : INT64_MAX;
}

/* Of one stretch in which nothing is set anew: energy (bound = 0), or nanoseconds in which its limit binds (1). */
static double stretch(const gpu *g, const held *h, int64_t from_ns, int64_t to_ns, int bound)
{
    double k = slowed(g, h), sum = 0;
    if (!can_bind(g, h)) return bound ? 0 : k * (unset_nj(g, to_ns) - unset_nj(g, from_ns));
    for (int64_t at = from_ns; at < to_ns;) {
        int64_t next = next_step(g, at), end = next < to_ns ? next : to_ns;
        double watts = k * unset_w(g, at), nanoseconds = (double)(end - at);
        sum += bound ? (watts > h->limit_w) * nanoseconds : fmin(watts, h->limit_w) * nanoseconds;
        at = end;
    }
    return sum;
}

/* The same from one time to another, over all that was set in between. */
static double over(const gpu *g, int64_t from_ns, int64_t to_ns, int bound)
{
    double sum = 0;
    for (size_t i = 0; i < g->held_count; i++) {
        const held *h = &g->held[i];
        int64_t begin = h->from_ns > from_ns ? h->from_ns : from_ns, end = to_ns;
        if (i + 1 < g->held_count && h[1].from_ns < end) end = h[1].from_ns;
        if (begin < end) sum += stretch(g, h, begin, end, bound);
    }
    return sum;
}

static double energy_nj(const gpu *g, int64_t at_ns) { return at_ns < 0 ? -over(g, at_ns, 0, 0) : over(g, 0, at_ns, 0); }

static const held *held_at(const gpu *g, int64_t at_ns)
{
    size_t i = g->held_count - 1;
    while (i && g->held[i].from_ns > at_ns) i--;
    return &g->held[i];
}

static double mean_w(const gpu *g, int64_t from_ns, int64_t to_ns)
{
    const held *h = held_at(g, to_ns);
    double watts = slowed(g, h) * unset_w(g, to_ns);
    if (from_ns >= to_ns) return can_bind(g, h) ? fmin(watts, h->limit_w) : watts;
    return over(g, from_ns, to_ns, 0) / (double)(to_ns - from_ns);
}

static double clock_mhz(const gpu *g, int64_t at_ns)
{
    const held *h = held_at(g, at_ns);
    double k = slowed(g, h), watts = k * unset_w(g, at_ns), mhz = evaluate(&g->sm_clock_mhz, at_ns, 0);
    if (h->clock_mhz > 0) mhz = fmin(mhz, h->clock_mhz);
    return can_bind(g, h) && watts > h->limit_w ? mhz * cbrt(h->limit_w / watts) : mhz;
}

/* Take over what was set since the last call. */
static void look_at_sets(gpu *g, int64_t now)
{
    const set *s = &sets[g - gpus];
    held new = {now, s->limit_w, s->clock_mhz}, *last = &g->held[g->held_count - 1];
    if (last->limit_w == new.limit_w && last->clock_mhz == new.clock_mhz) return;
    if (g->held_count == MAX_SETS) abort();
    g->held[g->held_count++] = new;
}

static int within(const span *s, int64_t now) { return s->from_ns <= now && now < s->to_ns; }

static unsigned long long counter_mj(const gpu *g, int64_t now)
{
    int64_t shown = now, base = driver_loaded_ns, tick = ns(g->tick_s), phase = ns(g->phase_s);
    for (const span *s = g->spans; s < g->spans + g->span_count; s++) {
        if (!strcmp(s->kind, "frozen") && within(s, now) && s->from_ns < shown) shown = s->from_ns;
        if (!strcmp(s->kind, "reset") && s->from_ns <= now && s->from_ns > base) base = s->from_ns;
    }
    if (tick > 0) shown = floor_to(shown - phase, tick) + phase;
    if (shown < base) shown = base;
    double module_nj = fmax(0, g->module_w) * (double)(shown - base), jumped_mj = 0;
    for (const span *s = g->spans; s < g->spans + g->span_count; s++)
        if (!strcmp(s->kind, "jump") && base < s->from_ns && s->from_ns <= shown) jumped_mj += s->number * 1e3;
    double gained_nj = g->gain * g->counter_gain * (energy_nj(g, shown) - energy_nj(g, base) + module_nj);
    double mj = fmax(0, floor(gained_nj / 1e6 + jumped_mj + (base ? 0 : g->counter_start_j * 1e3)));
    return (unsigned long long)(g->wrap_mj > 0 ? fmod(mj, g->wrap_mj) : mj);
}

static unsigned long long throttled_ns(const gpu *g, const char *field, int64_t now)
{
    double total = 0;
    for (const span *s = g->spans; s < g->spans + g->span_count; s++)
        if (!strcmp(s->kind, "throttled") && !strcmp(s->word, field) && now > s->from_ns)
            total += s->number * (double)((now < s->to_ns ? now : s->to_ns) - s->from_ns);
    if (!strcmp(field, "74")) total += over(g, 0, now, 1);
    return (unsigned long long)total;
}

static uint64_t mixed(uint64_t x) /* splitmix64 */
{
    x += UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    return x ^ (x >> 31);
}

static double normal(uint64_t seed) /* Box-Muller on two hashes */
{
    double a = (double)(mixed(seed) >> 11) * 0x1p-53, b = (double)(mixed(~seed) >> 11) * 0x1p-53;
    return sqrt(-2 * log(1 - a)) * cos(6.283185307179586 * b);
}

static double power_w(const gpu *g, int64_t now, int instant)
{
    for (const span *s = g->spans; s < g->spans + g->span_count; s++)
        if (!strcmp(s->kind, "nonsense") && within(s, now)) return s->number / 1e3;
    if (!instant) return g->gain * mean_w(g, now - ns(g->average_s), now);
    int64_t period = ns(g->sampling_s), end = floor_to(now, period);
    uint64_t stream = mixed((uint64_t)g->noise_seed * MAX_GPUS + (uint64_t)(g - gpus));
    double noise_w = g->noise_w * normal(stream ^ (uint64_t)(end / period));
    return fmax(0, g->gain * mean_w(g, end - ns(g->duty_s), end) + noise_w);
}

/* ---- what every call does first */

static int failure(const gpu *g, const char *what, int64_t now)
{
    for (const span *s = g->spans; s < g->spans + g->span_count; s++) {
        size_t length = strlen(s->word);
        if (!within(s, now)) continue;
        if (!strcmp(s->kind, "lost")) return GPU_IS_LOST;
        if (!strcmp(s->kind, "error") && !strncmp(s->word, what, length)
            && (!what[length] || !strncmp(what + length, "_v", 2))) return (int)s->number;
    }
    return g == &everything ? SUCCESS : failure(&everything, what, now);
}

static int enter(const char *function, const gpu *g, int64_t *now)
{
    int64_t cost = ns(everything.call_s);
    if (real_clock && cost) nanosleep(&(struct timespec){cost / 1000000000, cost % 1000000000}, NULL);
    pthread_mutex_lock(&mutex);
    calls++;
    *now = clock_ns() + (real_clock ? 0 : cost / 2);
    virtual_ns += cost;
    int known = g == &everything || (g >= gpus && g < gpus + gpu_count);
    if (g >= gpus && g < gpus + gpu_count) look_at_sets((gpu *)g, *now);
    int code = !clients ? UNINITIALIZED : !known ? INVALID_ARGUMENT : failure(g, function, *now);
    pthread_mutex_unlock(&mutex);
    return code;
}

#define CALL(g) int64_t now; int failed = enter(__func__, g, &now); if (failed) return failed

/* ---- the library and its devices */

static const char *load(const char *text);

static const char *script_path(void)
{
    const char *path = getenv("FAKE_NVML_SCRIPT");
#ifdef SCRIPT /* of a driver that a machine has for all its processes */
    if (!path) path = SCRIPT;
#endif
    return path;
}

/* What processes with one script share; where the environment names none, this process's own. */
static set *find_sets(void)
{
    static set *mapped;
    const char *script = getenv("FAKE_NVML_SCRIPT");
    char path[4096];
    if (mapped) munmap(mapped, sizeof own_sets);
    mapped = NULL;
    if (!script) return own_sets;
    snprintf(path, sizeof path, "%s.set", script);
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0 || ftruncate(file, sizeof own_sets)) abort();
    void *found = mmap(NULL, sizeof own_sets, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (found == MAP_FAILED) abort();
    return mapped = found;
}

static void load_from_environment(void)
{
    const char *path = script_path();
    FILE *file = path ? fopen(path, "r") : NULL;
    char *text = NULL;
    size_t size = 0;
    if (file && getdelim(&text, &size, '\0', file) >= 0 && load(text)) fprintf(stderr, "%s: %s\n", path, mistake);
    if (path && !file) fprintf(stderr, "FAKE_NVML_SCRIPT: cannot open %s\n", path);
    if (file) fclose(file);
    free(text);
}

static void add_client(int number)
{
    pthread_mutex_lock(&mutex);
    if (!clients && !everything.persistent) driver_loaded_ns = clock_ns();
    clients += number;
    pthread_mutex_unlock(&mutex);
}

int nvmlInitWithFlags(unsigned flags)
{
    int64_t now;
    (void)flags;
    pthread_mutex_lock(&mutex);
    if (!loaded) load_from_environment();
    pthread_mutex_unlock(&mutex);
    if (!loaded) return script_path() ? UNKNOWN : DRIVER_NOT_LOADED;
    add_client(1);
    int failed = enter(__func__, &everything, &now);
    if (failed) add_client(-1);
    return failed;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { CALL(&everything); add_client(-1); return SUCCESS; }
const char *nvmlErrorString(int code) { return code ? "an error of the fake driver" : "Success"; }

static int answer_text(char *out, unsigned length, const char *text)
{
    return (unsigned)snprintf(out, length, "%s", text) < length ? SUCCESS : INSUFFICIENT_SIZE;
}

#define TEXT(text) { CALL(g); return answer_text(out, length, text); }
#define SYSTEM const gpu *g = &everything;
int nvmlSystemGetDriverVersion(char *out, unsigned length) { SYSTEM TEXT(driver_version) }
int nvmlSystemGetNVMLVersion(char *out, unsigned length) { SYSTEM TEXT("12.550.54.15") }
int nvmlSystemGetCudaDriverVersion(int *out) { CALL(&everything); *out = 12040; return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *out) { CALL(&everything); *out = gpu_count; return SUCCESS; }
int nvmlDeviceGetUUID(const gpu *g, char *out, unsigned length) TEXT(g->uuid)
int nvmlDeviceGetName(const gpu *g, char *out, unsigned length) TEXT(g->name)

int nvmlDeviceGetHandleByIndex_v2(unsigned index, gpu **out)
{
    CALL(&everything);
    *out = &gpus[index < gpu_count ? index : 0];
    return index < gpu_count ? failure(*out, __func__, now) : INVALID_ARGUMENT;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, gpu **out)
{
    CALL(&everything);
    for (*out = gpus; *out < gpus + gpu_count; ++*out)
        if (!strcmp((*out)->uuid, uuid)) return failure(*out, __func__, now);
    return NOT_FOUND;
}

/* ---- simple questions */

#define ANSWER(name, type, value) int name(const gpu *g, type *out) { CALL(g); *out = (type)(value); return SUCCESS; }
ANSWER(nvmlDeviceGetIndex, unsigned, g - gpus)
ANSWER(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, counter_mj(g, now))
static double limit_w(const gpu *g) { return sets[g - gpus].limit_w ? sets[g - gpus].limit_w : g->power_limit_w; }
ANSWER(nvmlDeviceGetEnforcedPowerLimit, unsigned, lround(limit_w(g) * 1e3))
ANSWER(nvmlDeviceGetPowerManagementLimit, unsigned, lround(limit_w(g) * 1e3))
ANSWER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned, lround(g->default_power_limit_w * 1e3))
ANSWER(nvmlDeviceGetComputeMode, unsigned, g->compute_mode)

int nvmlDeviceGetCudaComputeCapability(const gpu *g, int *major, int *minor)
{
    CALL(g);
    *major = (int)g->compute_capability, *minor = (int)lround(10 * (g->compute_capability - *major));
    return g->compute_capability ? SUCCESS : NOT_SUPPORTED;
}

#define ANSWER_OF_KIND(name, most, otherwise, value) \
    int name(const gpu *g, unsigned kind, unsigned *out) \
    { CALL(g); *out = (unsigned)lround(value); return kind <= (most) ? SUCCESS : (otherwise); }
ANSWER_OF_KIND(nvmlDeviceGetTemperature, 0, INVALID_ARGUMENT, evaluate(&g->temperature_c, now, 0))
ANSWER_OF_KIND(nvmlDeviceGetTemperatureThreshold, 1, NOT_SUPPORTED, kind ? g->slowdown_c : g->shutdown_c)
/* 0 graphics, 1 SM, 2 memory */
ANSWER_OF_KIND(nvmlDeviceGetClockInfo, 2, NOT_SUPPORTED,
               kind == 2 ? g->memory_clock_mhz : clock_mhz(g, now))
ANSWER_OF_KIND(nvmlDeviceGetMaxClockInfo, 2, NOT_SUPPORTED, kind == 2 ? g->memory_clock_mhz : g->max_sm_clock_mhz)

/* ---- what can be set */

int nvmlDeviceGetPowerManagementLimitConstraints(const gpu *g, unsigned *least, unsigned *most)
{
    CALL(g);
    *least = (unsigned)lround(g->min_power_limit_w * 1e3), *most = (unsigned)lround(g->max_power_limit_w * 1e3);
    return SUCCESS;
}

static int keep(gpu *g, int64_t now, double watts, double mhz)
{
    pthread_mutex_lock(&mutex);
    set *s = &sets[g - gpus];
    *s = (set){watts, mhz, s->times + 1};
    look_at_sets(g, now);
    pthread_mutex_unlock(&mutex);
    return SUCCESS;
}

int nvmlDeviceSetPowerManagementLimit(gpu *g, unsigned milliwatts)
{
    CALL(g);
    if (milliwatts < g->min_power_limit_w * 1e3 || milliwatts > g->max_power_limit_w * 1e3) return INVALID_ARGUMENT;
    return keep(g, now, milliwatts / 1e3, sets[g - gpus].clock_mhz);
}

int nvmlDeviceSetGpuLockedClocks(gpu *g, unsigned least, unsigned most)
{
    CALL(g);
    return least > most || !most ? INVALID_ARGUMENT : keep(g, now, sets[g - gpus].limit_w, most);
}

int nvmlDeviceResetGpuLockedClocks(gpu *g) { CALL(g); return keep(g, now, sets[g - gpus].limit_w, 0); }

static int answer_clocks(unsigned *count, unsigned *out, unsigned found, unsigned most, unsigned step)
{
    unsigned room = out ? *count : 0;
    for (unsigned i = 0; i < found && i < room; i++) out[i] = most - i * step;
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetSupportedMemoryClocks(const gpu *g, unsigned *count, unsigned *out)
{
    CALL(g);
    return answer_clocks(count, out, 1, (unsigned)g->memory_clock_mhz, 0);
}

int nvmlDeviceGetSupportedGraphicsClocks(const gpu *g, unsigned memory, unsigned *count, unsigned *out) /* by 15 MHz */
{
    CALL(g);
    unsigned most = (unsigned)g->max_sm_clock_mhz;
    return memory != (unsigned)g->memory_clock_mhz ? NOT_FOUND : answer_clocks(count, out, (most - 210) / 15 + 1, most, 15);
}

#define MODE(name, mode) int name(const gpu *g, unsigned *current, unsigned *pending) \
    { CALL(g); *current = *pending = (unsigned)(mode); return SUCCESS; }
MODE(nvmlDeviceGetEccMode, g->ecc)
MODE(nvmlDeviceGetMigMode, g->mig)

int nvmlDeviceGetMemoryInfo(const gpu *g, unsigned long long *total_free_used)
{
    CALL(g);
    total_free_used[0] = (unsigned long long)g->memory_bytes;
    total_free_used[2] = (unsigned long long)g->memory_used_bytes;
    total_free_used[1] = total_free_used[0] - total_free_used[2];
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(const gpu *g, unsigned *gpu_memory) /* no kernels here: power over its limit */
{
    CALL(g);
    gpu_memory[0] = gpu_memory[1] = (unsigned)lround(fmin(100, 100 * mean_w(g, now, now) / g->power_limit_w));
    return SUCCESS;
}

typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } process;

static int answer_processes(const gpu *g, const char *kind, int64_t now, unsigned *count, process *out)
{
    unsigned room = out ? *count : 0, found = 0;
    for (const span *s = g->spans; s < g->spans + g->span_count; s++)
        if (!strcmp(s->kind, kind) && within(s, now) && found++ < room)
            out[found - 1] = (process){(unsigned)s->number, UINT64_C(1) << 30, UINT32_MAX, UINT32_MAX};
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

#define PROCESSES(name, kind) int name(const gpu *g, unsigned *count, process *out) \
    { CALL(g); return answer_processes(g, kind, now, count, out); }
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2, "compute")
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2, "graphics")
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v2, "mps")
#ifndef WITHOUT_V3 /* of a driver before 510 */
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, "compute")
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, "graphics")
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3, "mps")
#endif

/* ---- power and fields */

/* Some drivers answer a power read that comes too soon with nothing. */
static int too_soon(gpu *g, int64_t now)
{
    pthread_mutex_lock(&mutex);
    int soon = g->polled && now - g->polled_ns < ns(g->shortest_poll_s);
    g->polled = 1;
    g->polled_ns = now;
    pthread_mutex_unlock(&mutex);
    return soon;
}

int nvmlDeviceGetPowerUsage(gpu *g, unsigned *out)
{
    CALL(g);
    int soon = too_soon(g, now);
    *out = soon ? 0 : (unsigned)lround(power_w(g, now, 0) * 1e3);
    return soon ? (int)g->too_fast_code : SUCCESS;
}

typedef struct {
    uint32_t field, scope;
    int64_t timestamp_us, latency_us;
    uint32_t type, code;
    union { unsigned u; unsigned long long ull; } value;
} field_value;

static int is_power(unsigned field) { return field == POWER_AVERAGE || field == POWER_INSTANT; }
static int is_throttle(unsigned f) { return f == 74 || f == 76 || f == 77 || f == 269 || f == 270 || f == 271; }

static int answer_field(const gpu *g, field_value *f, int64_t now, int soon)
{
    char name[16];
    snprintf(name, sizeof name, "%u", f->field);
    int code = failure(g, name, now), in_scope = !f->scope || (f->scope == 1 && g->module_w >= 0);
    if (code) return code;
    if (!is_power(f->field)) {
        if (f->field != ENERGY && !is_throttle(f->field)) return NOT_SUPPORTED;
        f->type = 3; /* NVML_VALUE_TYPE_UNSIGNED_LONG_LONG */
        f->value.ull = f->field == ENERGY ? counter_mj(g, now) : throttled_ns(g, name, now);
        return f->scope ? INVALID_ARGUMENT : SUCCESS;
    }
    double watts = power_w(g, now, f->field == POWER_INSTANT) + (f->scope ? g->module_w : 0);
    f->type = 1; /* NVML_VALUE_TYPE_UNSIGNED_INT */
    f->value.u = soon || !in_scope ? 0 : (unsigned)lround(watts * 1e3);
    return !in_scope ? NOT_SUPPORTED : soon ? (int)g->too_fast_code : SUCCESS;
}

int nvmlDeviceGetFieldValues(gpu *g, int count, field_value *fields)
{
    CALL(g);
    int soon = -1; /* all power fields of one call are one read */
    for (field_value *f = fields; f < fields + count; f++) {
        if (soon < 0 && is_power(f->field)) soon = too_soon(g, now);
        f->timestamp_us = now / 1000;
        f->latency_us = 0;
        f->code = (uint32_t)answer_field(g, f, now, soon > 0);
    }
    return SUCCESS;
}

/* ---- the script */

__attribute__((format(printf, 1, 2))) static void wrong(const char *format, ...)
{
    va_list arguments;
    if (mistake[0]) return; /* the first one is the cause */
    va_start(arguments, format);
    vsnprintf(mistake, sizeof mistake, format, arguments);
    va_end(arguments);
}

static char *next_word(char **rest)
{
    char *start = *rest + strspn(*rest, " \t\r"), *end = start + strcspn(start, " \t\r");
    *rest = *end ? end + 1 : end;
    *end = '\0';
    return *start ? start : NULL;
}

static int next_number(char **rest, double *out) /* whether there is one */
{
    char *end, *text = next_word(rest);
    if (!text) return 0;
    *out = strtod(text, &end);
    if (*end || isnan(*out)) wrong("'%s' is not a number", text);
    return 1;
}

static void read_text(char *out, size_t size, char **rest)
{
    snprintf(out, size, "%s", *rest + strspn(*rest, " \t"));
    out[strcspn(out, "\r")] = '\0';
    *rest += strlen(*rest);
}

static void read_curve(curve *c, char **rest)
{
    char *shape = next_word(rest);
    double seconds, value = 0;
    if (!shape || (strcmp(shape, "step") && strcmp(shape, "linear"))) return wrong("a curve is 'step' or 'linear'");
    for (c->linear = !strcmp(shape, "linear"); next_number(rest, &seconds);) {
        if (!next_number(rest, &value)) wrong("the point at %g s has no value", seconds);
        point new = {ns(seconds), value, 0}, *last = c->count ? &c->points[c->count - 1] : &new;
        if (new.at_ns < last->at_ns) wrong("%g s comes before the point that it follows", seconds);
        double mean = c->linear ? (last->value + value) / 2 : last->value;
        new.area = last->area + mean * (double)(new.at_ns - last->at_ns);
        c->points = realloc(c->points, (c->count + 1) * sizeof new);
        c->points[c->count++] = new;
    }
    if (!c->count) wrong("a curve needs a point");
}

/* A misspelt function would never fail: is it one of ours, with or without its version? */
static int is_function(const char *name)
{
    Dl_info here;
    void *self = dladdr((void *)&gpu_count, &here) ? dlopen(here.dli_fname, RTLD_LAZY | RTLD_NOLOAD) : NULL;
    char second[80], third[80];
    snprintf(second, sizeof second, "%s_v2", name);
    snprintf(third, sizeof third, "%s_v3", name);
    return self && (dlsym(self, name) || dlsym(self, second) || dlsym(self, third));
}

static void read_span(gpu *g, size_t which, char **rest)
{
    span *s = &g->spans[g->span_count];
    double from = -INFINITY, to = INFINITY;
    if (g->span_count == MAX_SPANS) return wrong("more than %d spans on one GPU", MAX_SPANS);
    *s = (span){.kind = SPANS[which].name};
    if (SPANS[which].word) {
        char *word = next_word(rest);
        unsigned field = word ? (unsigned)strtoul(word, NULL, 10) : 0;
        int may_fail = word && (is_power(field) || field == ENERGY || is_throttle(field) || is_function(word));
        if (!may_fail || (!strcmp(s->kind, "throttled") && !is_throttle(field)))
            return wrong("'%s' cannot be '%s'", word ? word : "", s->kind);
        snprintf(s->word, sizeof s->word, "%s", word);
    }
    if (SPANS[which].number && !next_number(rest, &s->number)) wrong("'%s' needs a number", s->kind);
    if (!next_number(rest, &from) && SPANS[which].times) wrong("'%s' needs a time", s->kind);
    next_number(rest, &to);
    if (to < from) wrong("'%s' ends before it begins", s->kind);
    s->from_ns = ns(from);
    s->to_ns = ns(to);
    g->span_count++;
}

static void read_clock(char **rest)
{
    char *kind = next_word(rest);
    double seconds = 0;
    int given = next_number(rest, &seconds);
    real_clock = kind && !strcmp(kind, "real");
    if (!kind || (strcmp(kind, "virtual") && !(real_clock && given)))
        wrong("a clock is 'virtual [START]' or 'real ORIGIN'");
    *(real_clock ? &origin_ns : &virtual_ns) = ns(seconds);
}

static gpu *open_gpu(char **rest)
{
    char *uuid = next_word(rest);
    gpu *g = &gpus[gpu_count];
    if (!uuid) wrong("a GPU needs a UUID");
    if (gpu_count == MAX_GPUS) wrong("more than %d GPUs", MAX_GPUS);
    if (mistake[0]) return NULL;
    *g = everything; /* its scalars are the defaults */
    g->span_count = 0;
    g->held[0] = (held){INT64_MIN, sets[gpu_count].limit_w, sets[gpu_count].clock_mhz};
    g->held_count = 1;
    snprintf(g->uuid, sizeof g->uuid, "%s", uuid);
    read_text(g->name, sizeof g->name, rest);
    gpu_count++;
    return g;
}

static void describe_gpu(gpu *g, const char *name, char **rest)
{
    for (size_t i = 0; i < LENGTH(SCALARS); i++) {
        double *scalar = (double *)((char *)g + SCALARS[i].offset);
        if (strcmp(name, SCALARS[i].name)) continue;
        if (!next_number(rest, scalar)) wrong("'%s' needs a number", name);
        if (g->sampling_s < 1e-9) wrong("'sampling_s' must be positive");
        return;
    }
    for (size_t i = 0; i < LENGTH(SPANS); i++)
        if (!strcmp(name, SPANS[i].name) && (g != &everything || !i)) return read_span(g, i, rest);
    for (size_t i = 0; i < LENGTH(CURVES); i++)
        if (!strcmp(name, CURVES[i].name) && g != &everything)
            return read_curve((curve *)((char *)g + CURVES[i].offset), rest);
    wrong("'%s' is not a directive%s", name, g == &everything ? " before the first 'gpu'" : "");
}

static const char *load(const char *text) /* NULL, or what is wrong and in which line */
{
    for (gpu *g = gpus; g < gpus + gpu_count; g++)
        for (size_t i = 0; i < LENGTH(CURVES); i++) free(((curve *)((char *)g + CURVES[i].offset))->points);
    memset(gpus, 0, sizeof gpus);
    memset(&everything, 0, sizeof everything);
    for (size_t i = 0; i < LENGTH(SCALARS); i++) *(double *)((char *)&everything + SCALARS[i].offset) = SCALARS[i].usual;
    memset(own_sets, 0, sizeof own_sets);
    sets = find_sets();
    gpu_count = 0, clients = 0, real_clock = 0, calls = 0, mistake[0] = '\0'; /* a driver that restarts */
    virtual_ns = origin_ns = driver_loaded_ns = 0;
    strcpy(driver_version, "550.54.15");
    char *copy = strdup(text), *line = copy, *next, because[sizeof mistake - 20];
    gpu *g = &everything;
    for (int number = 1; line && !mistake[0]; line = next, number++) {
        if ((next = strchr(line, '\n'))) *next++ = '\0';
        char *rest = line, *name = next_word(&rest), *more;
        if (!name || *name == '#') continue;
        if (!strcmp(name, "gpu")) g = open_gpu(&rest);
        else if (!strcmp(name, "clock")) read_clock(&rest);
        else if (!strcmp(name, "driver")) read_text(driver_version, sizeof driver_version, &rest);
        else describe_gpu(g, name, &rest);
        if ((more = next_word(&rest))) wrong("'%s' is too much", more);
        snprintf(because, sizeof because, "%s", mistake);
        if (mistake[0]) snprintf(mistake, sizeof mistake, "line %d: %s", number, because);
    }
    free(copy);
    loaded = !mistake[0];
    return loaded ? NULL : mistake;
}

/* ---- for tests */

const char *fake_nvml_load(const char *text)
{
    pthread_mutex_lock(&mutex);
    const char *answer = load(text);
    pthread_mutex_unlock(&mutex);
    return answer;
}

void fake_nvml_set_ns(int64_t now_ns)
{
    pthread_mutex_lock(&mutex);
    virtual_ns = now_ns;
    pthread_mutex_unlock(&mutex);
}

int64_t fake_nvml_now_ns(void)
{
    pthread_mutex_lock(&mutex);
    int64_t now = clock_ns();
    pthread_mutex_unlock(&mutex);
    return now;
}

/* What the GPU really used, without gain, tick or rounding. */
double fake_nvml_energy_j(int index, double from_s, double to_s)
{
    return (energy_nj(&gpus[index], ns(to_s)) - energy_nj(&gpus[index], ns(from_s))) / 1e9;
}

long fake_nvml_calls(void) { return calls; }
