/* A program in C that marks its training: one JSON line, appended to the file that $ENERGYBENCH_WINDOWS names.
 *
 * It fits the weight of a line to noisy points by gradient descent, from every STRIDEth point in each step. The clock
 * must be CLOCK_MONOTONIC, in seconds.
 *
 *     cc -O2 -o train train.c && ./train STEPS STRIDE
 */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define POINTS 20000

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static double uniform(void) { return (double)rand() / RAND_MAX; }

int main(int argc, char **argv)
{
    int steps = argc > 1 ? atoi(argv[1]) : 1000, stride = argc > 2 ? atoi(argv[2]) : 1;
    static double x[POINTS], y[POINTS];
    double weight = 0;

    srand(getenv("ENERGYBENCH_SEED") ? (unsigned)atoi(getenv("ENERGYBENCH_SEED")) : 1);
    for (int i = 0; i < POINTS; i++) {
        x[i] = uniform();
        y[i] = 3 * x[i] + 0.1 * (uniform() - 0.5);
    }

    double start = seconds();
    for (int step = 0; step < steps; step++) {
        double gradient = 0;
        for (int i = step % stride; i < POINTS; i += stride)
            gradient += 2 * (weight * x[i] - y[i]) * x[i] * stride / POINTS;
        weight -= 0.5 * gradient;
    }
    double stop = seconds();

    const char *path = getenv("ENERGYBENCH_WINDOWS");
    FILE *windows = path ? fopen(path, "a") : NULL;
    if (windows) {
        fprintf(windows, "{\"name\": \"train\", \"start_s\": %.9f, \"stop_s\": %.9f, \"steps\": %d}\n", start, stop, steps);
        fclose(windows);
    }
    printf("error=%.6f\n", fabs(weight - 3));
    return 0;
}
