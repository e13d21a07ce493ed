// Inference in the latent space of class-conditional decoders: the descents of defenses/abs/search.py, one image and one
// class at a time.
//
// A decoder is a dense layer and transposed convolutions, with an activation after all but the last, which has a sigmoid.
// Vectors hold channels. Maps have zeros beside them, so that no tap needs a condition, and all values of one image and one
// class stay in the second-level cache. Every function is compiled for several instruction sets and has its name
// appended. There is no state but what the caller passes: `scratch` is zero before the first call, and may be used again
// for the same decoder.

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define JOINED(a, b) a##_##b
#define JOIN(a, b) JOINED(a, b)
#ifdef __clang__
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 32")
#endif
#define FUNCTION static TARGET __attribute__((unused))
#define INLINE static inline TARGET __attribute__((always_inline, unused))
#define EXPORT TARGET __attribute__((visibility("default")))

enum { RELU, ELU };
enum { MOST_LAYERS = 8, MOST_LATENTS = 64 };
// Sums that stay in registers: 16 registers also hold a weight and an input.
enum { MOST_SUMS = 13 };
#define BETA_1 0.9
#define BETA_2 0.999
#define EPSILON 1e-8f

// What the caller passes. `defenses.abs.compiled` has the same structures.
typedef struct { int32_t channels, kernel, stride, padding; } Layer;
typedef struct {
  int32_t latent, activation, size, channels;  // size and channels of the dense layer's output
  int32_t layers;
  Layer layer[MOST_LAYERS];
} Decoder;

// The energy that is added to the squared error. Null pointers stand for no slack (N), no draws (T, K, N, L).
typedef struct {
  float variance, most_norm, divergence;
  float discriminator_weight, leak;
  int32_t first, second;  // widths of the discriminator's hidden layers; 0 for none
  int64_t network_step, noise_step;
  const float *network, *slack, *noise;
} Objective;

typedef struct {
  int64_t classes, images;
  float learning_rate;
  const float *weights;  // (K, packed)
  const float *x;        // (N, D)
  float *p;              // (K, N, P)
  const uint8_t *wanted; // (K, N): the pairs to minimize; null for all
  Objective objective;
} Problem;

typedef struct {
  double power_1, power_2;  // of Adam's decay rates, to the number of steps taken
  float p[2 * MOST_LATENTS], gradient[2 * MOST_LATENTS], mean[2 * MOST_LATENTS], square[2 * MOST_LATENTS];
  int32_t taken, live;
} State;

// A map of activations: `left` and `right` zeros beside it, `pitch` floats a pixel, `row` floats a row. Its derivative has
// `beside` zeros on both sides. `values` and `slopes` are places in the scratch memory.
typedef struct {
  int size, channels, lanes, pitch, left, right, beside;
  long row, slope_row, values, slopes;
} Map;

// Map 0 is the dense layer's output, map l that of the l-th transposed convolution. Other members are places in the
// packed weights and in the scratch memory, and their sizes.
typedef struct {
  int latent, activation, layers, pixels;
  Layer layer[MOST_LAYERS + 1];
  Map maps[MOST_LAYERS + 1];
  long dense, forward[MOST_LAYERS + 1], backward[MOST_LAYERS + 1], bias[MOST_LAYERS + 1];
  long image, decoded, derivative;
  long weights, scratch;
} Plan;

// One image under one class.
typedef struct { const float *weights, *network, *noise; float slack; } Task;

// The taps that a row of outputs sees, and how far apart their inputs and weights are. `step` lies between the inputs of
// neighbouring outputs, `pitch` between the weights of two input channels.
typedef struct {
  int rows, columns, channels;
  long row_source, column_source, row_weight, column_weight, step, pitch;
} Taps;
typedef struct { const float *input, *weights, *bias; float *output; long spacing; } Row;

#if defined(__x86_64__)
#define ISA avx512
#define WIDEST 16
#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx2,fma")))
#include "instructions.h"
#define ISA avx2
#define WIDEST 8
#define TARGET __attribute__((target("avx2,fma")))
#include "instructions.h"
#endif
#define ISA baseline
#define WIDEST 4
#define TARGET
#include "instructions.h"

// The digest of this source when it was compiled: a library of another source must not serve.
#undef TARGET
#define TARGET
#ifndef SOURCE_DIGEST
#define SOURCE_DIGEST ""
#endif
EXPORT const char *source_digest(void) { return SOURCE_DIGEST; }

// Whether this processor has the instructions of a set.
EXPORT int supports_baseline(void) { return 1; }
#if defined(__x86_64__)
EXPORT int supports_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
EXPORT int supports_avx512(void) {
  return supports_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq");
}
#endif
