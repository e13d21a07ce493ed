// Runs the kernel on decoders of several shapes, for every instruction set of this processor, in memory of exactly the
// size that it asks for. To be compiled with sanitizers.

#include "kernel.c"

#include <stdio.h>
#include <stdlib.h>

enum { CLASSES = 3, IMAGES = 2, EVALUATIONS = 5, FIRST = 37, SECOND = 19 };

static float *drawn(long n) {
  float *values = malloc(n * sizeof(float));
  for (long i = 0; i < n; i++) values[i] = (float)rand() / (float)RAND_MAX - .5f;
  return values;
}

#define RUN(ISA)                                                                                                      \
  static void run_##ISA(Decoder decoder, int discriminated, int variational) {                                        \
    int64_t weights, scratch;                                                                                         \
    sizes_##ISA(&decoder, &weights, &scratch);                                                                        \
    const Plan plan = plan_##ISA(&decoder);                                                                           \
    const int n = variational ? 2 * decoder.latent : decoder.latent;                                                  \
    long natural = (decoder.latent + 1L) * decoder.size * decoder.size * decoder.channels;                            \
    for (int l = 0, in = decoder.channels; l < decoder.layers; in = decoder.layer[l++].channels)                      \
      natural += (long)decoder.layer[l].channels * (in * decoder.layer[l].kernel * decoder.layer[l].kernel + 1);      \
    const long network = (long)decoder.latent * FIRST + FIRST + 2L * FIRST * SECOND + 2 * SECOND + 1;                 \
    float *own = drawn(natural), *packed = calloc(CLASSES * weights, sizeof(float));                                  \
    float *memory = calloc(scratch + (discriminated ? 2 * (FIRST + SECOND) : 0), sizeof(float));                      \
    float *x = drawn((long)IMAGES * plan.pixels), *p = drawn(CLASSES * IMAGES * n), *slack = drawn(IMAGES);           \
    float *noise = drawn(EVALUATIONS * CLASSES * IMAGES * decoder.latent), *nets = drawn(CLASSES * network);          \
    for (int k = 0; k < CLASSES; k++) pack_##ISA(&decoder, own, packed + k * weights);                                \
    Problem problem = {.classes = CLASSES, .images = IMAGES, .learning_rate = .05f, .weights = packed, .x = x, .p = p}; \
    problem.objective = (Objective){.variance = .5f, .most_norm = 2, .divergence = 1, .slack = slack};                \
    if (discriminated) {                                                                                              \
      problem.objective.first = FIRST, problem.objective.second = SECOND, problem.objective.network = nets;           \
      problem.objective.network_step = network, problem.objective.discriminator_weight = 1;                           \
    }                                                                                                                 \
    if (variational) problem.objective.noise = noise;                                                                 \
    problem.objective.noise_step = CLASSES * IMAGES * decoder.latent;                                                 \
    float *values = drawn(CLASSES * IMAGES), *decoded = drawn((long)CLASSES * IMAGES * plan.pixels);                  \
    float *derivatives = drawn(CLASSES * IMAGES * n);                                                                 \
    minimize_##ISA(&decoder, &problem, EVALUATIONS, values, decoded, 0, memory);                                      \
    minimize_##ISA(&decoder, &problem, 1, values, 0, derivatives, memory);                                            \
    if (!variational) {                                                                                               \
      const float scales[] = {1, 1.1f, .9f}, gaps[] = {INFINITY, INFINITY, .5f, INFINITY, INFINITY};                  \
      int32_t taken[CLASSES * IMAGES];                                                                                \
      int64_t decisions[IMAGES];                                                                                      \
      State *states = malloc(CLASSES * sizeof *states);                                                               \
      decide_##ISA(&decoder, &problem, EVALUATIONS, scales, gaps, values, taken, decisions, states, memory);          \
      for (int i = 0; i < IMAGES; i++)                                                                                \
        if (decisions[i] < 0 || decisions[i] >= CLASSES) abort();                                                     \
      free(states);                                                                                                   \
    }                                                                                                                 \
    float *all[] = {own, packed, memory, x, p, slack, noise, nets, values, decoded, derivatives};                     \
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);                                             \
  }

#if defined(__x86_64__)
RUN(avx512)
RUN(avx2)
#endif
RUN(baseline)

static const Decoder DECODERS[] = {
    {8, ELU, 4, 32, 3, {{16, 5, 2, 0}, {16, 5, 2, 0}, {1, 4, 1, 0}}},
    {20, ELU, 4, 32, 3, {{16, 5, 2, 0}, {16, 5, 2, 0}, {3, 8, 1, 0}}},
    {4, ELU, 2, 12, 2, {{4, 3, 2, 0}, {1, 4, 1, 0}}},
    {10, RELU, 4, 32, 4, {{32, 5, 2, 0}, {16, 5, 2, 0}, {8, 4, 1, 0}, {1, 1, 1, 0}}},
    {5, RELU, 2, 16, 3, {{16, 4, 2, 1}, {8, 4, 2, 1}, {1, 1, 1, 0}}},
    {64, RELU, 1, 5, 4, {{40, 6, 3, 2}, {7, 2, 3, 0}, {33, 3, 1, 1}, {2, 1, 1, 0}}},
    {1, ELU, 3, 1, 1, {{4, 5, 2, 2}}},
};

int main(void) {
  int sets = 0;
  for (unsigned i = 0; i < sizeof DECODERS / sizeof *DECODERS; i++)
    for (int discriminated = 0; discriminated < 2; discriminated++)
      for (int variational = 0; variational < 2; variational++) {
        sets = 0;
        if (supports_baseline()) run_baseline(DECODERS[i], discriminated, variational), sets++;
#if defined(__x86_64__)
        if (supports_avx2()) run_avx2(DECODERS[i], discriminated, variational), sets++;
        if (supports_avx512()) run_avx512(DECODERS[i], discriminated, variational), sets++;
#endif
      }
  printf("%d sets of instructions\n", sets);
  return 0;
}
