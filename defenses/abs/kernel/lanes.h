// Arithmetic on vectors of LANES floats, and the inner loops of transposed convolutions.
//
// Included once per instruction set and number of lanes. `L(name)` appends both to a name. The vectors are the
// compiler's own (GCC, clang), so one source serves all instruction sets.

#define vec L(floats)
#define ivec L(ints)
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

INLINE vec L(load)(const float *p) {
  vec v;
  memcpy(&v, p, sizeof v);
  return v;
}

INLINE void L(store)(float *p, vec v) { memcpy(p, &v, sizeof v); }

INLINE vec L(all)(float f) { return (vec){} + f; }

INLINE vec L(select)(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

INLINE float L(sum)(vec v) {
#if LANES == 4
  return (v[0] + v[2]) + (v[1] + v[3]);
#else
  HALF(floats) low, high;
  memcpy(&low, &v, sizeof low);
  memcpy(&high, (char *)&v + sizeof low, sizeof high);
  return HALF(sum)(low + high);
#endif
}

// exp by a polynomial (Cephes), within 2 units in the last place where |x| < 87. A NaN becomes exp(-87): the energy of
// a NaN is NaN all the same.
INLINE vec L(exponential)(vec x) {
  x = L(select)(x > -87.f, x, L(all)(-87.f));
  x = L(select)(x < 87.f, x, L(all)(87.f));
  vec t = x * 1.44269504088896341f;
  ivec power = __builtin_convertvector(t + L(select)(t > 0.f, L(all)(.5f), L(all)(-.5f)), ivec);
  vec n = __builtin_convertvector(power, vec);
  vec r = n * 2.12194440e-4f + (n * -0.693359375f + x);
  vec p = L(all)(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  return p * (vec)((power + 127) << 23);
}

INLINE vec L(positive)(vec x) { return L(select)(x > 0.f, x, (vec){}); }

INLINE vec L(elu)(vec x) { return L(select)(x > 0.f, x, L(exponential)(x) - 1.0f); }

// A block of outputs of a dense layer (m, n), of which `pitch` are computed.
FUNCTION void L(dense)(int m, int pitch, long n, const float *z, const float *matrix, const float *bias, float *output) {
  for (int j = 0; j < pitch; j += LANES) {
    vec sum = L(load)(bias + j);
    for (int i = 0; i < m; i++) sum += z[i] * L(load)(matrix + i * n + j);
    L(store)(output + j, sum);
  }
}

// sums[k * n + t] += over all taps and channels, input * weight, for n neighbouring pixels t and `blocks` blocks k of
// LANES channels. With constant n and blocks, all sums stay in registers. Few sums are split into two or four `ways`,
// because an addition waits for the one before it.
INLINE void L(add_taps)(const int n, const int blocks, Taps taps, const float *input, const float *weights, vec *sums) {
  const int count = n * blocks, ways = count <= 3 ? 4 : count <= 6 ? 2 : 1;
  vec others[MOST_SUMS];
  UNROLLED for (int k = 0; k < count * (ways - 1); k++) others[k] = (vec){};
#define CHANNEL(c, into)                                                                                              \
  {                                                                                                                   \
    vec w[2];                                                                                                         \
    UNROLLED for (int k = 0; k < blocks; k++) w[k] = L(load)(weight + (c)*taps.pitch + k * LANES);                    \
    UNROLLED for (int t = 0; t < n; t++) {                                                                            \
      const float value = source[t * taps.step + (c)];                                                                \
      UNROLLED for (int k = 0; k < blocks; k++)(into)[k * n + t] += value * w[k];                                     \
    }                                                                                                                 \
  }
  for (int r = 0; r < taps.rows; r++)
    for (int q = 0; q < taps.columns; q++) {
      const float *source = input + r * taps.row_source + q * taps.column_source;
      const float *weight = weights + r * taps.row_weight + q * taps.column_weight;
      int c = 0;
      for (; c + ways <= taps.channels; c += ways) {
        CHANNEL(c, sums)
        UNROLLED for (int way = 1; way < ways; way++) CHANNEL(c + way, others + (way - 1) * count)
      }
      for (; c < taps.channels; c++) CHANNEL(c, sums)
    }
#undef CHANNEL
  UNROLLED for (int way = 1; way < ways; way++)
    UNROLLED for (int k = 0; k < count; k++) sums[k] += others[(way - 1) * count + k];
}

INLINE void L(forward_pixels)(const int n, const int blocks, Taps taps, Row row) {
  vec sums[MOST_SUMS];
  UNROLLED for (int k = 0; k < blocks; k++) {
    vec bias = row.bias ? L(load)(row.bias + k * LANES) : (vec){};
    UNROLLED for (int t = 0; t < n; t++) sums[k * n + t] = bias;
  }
  L(add_taps)(n, blocks, taps, row.input, row.weights, sums);
  UNROLLED for (int k = 0; k < blocks; k++) UNROLLED for (int t = 0; t < n; t++)
      L(store)(row.output + t * row.spacing + k * LANES, sums[k * n + t]);
}

// Of one output channel: the lanes hold input channels, and are summed in the end.
INLINE void L(thin_pixels)(const int n, const int blocks, Taps taps, Row row) {
  (void)blocks;
  vec sums[MOST_SUMS];
  UNROLLED for (int t = 0; t < n; t++) sums[t] = (vec){};
  for (int r = 0; r < taps.rows; r++)
    for (int q = 0; q < taps.columns; q++) {
      const float *source = row.input + r * taps.row_source + q * taps.column_source;
      const float *weight = row.weights + r * taps.row_weight + q * taps.column_weight;
      for (int c = 0; c < taps.channels; c += LANES) {
        vec w = L(load)(weight + c);
        UNROLLED for (int t = 0; t < n; t++) sums[t] += L(load)(source + t * taps.step + c) * w;
      }
    }
  UNROLLED for (int t = 0; t < n; t++) row.output[t * row.spacing] = *row.bias + L(sum)(sums[t]);
}

// Runs one of the above for `count` pixels, in equal parts of at most MOST_SUMS sums.
#define PIXELS(n, blocks) case n: L(PART)(n, blocks, taps, row); break;
#define ONE_BLOCK(n)                                                                                                  \
  switch (n) {                                                                                                        \
    PIXELS(1, 1) PIXELS(2, 1) PIXELS(3, 1) PIXELS(4, 1) PIXELS(5, 1) PIXELS(6, 1) PIXELS(7, 1) PIXELS(8, 1)           \
    PIXELS(9, 1) PIXELS(10, 1) PIXELS(11, 1) PIXELS(12, 1) PIXELS(13, 1)                                              \
  }
#define TWO_BLOCKS(n)                                                                                                 \
  switch (n) { PIXELS(1, 2) PIXELS(2, 2) PIXELS(3, 2) PIXELS(4, 2) PIXELS(5, 2) PIXELS(6, 2) }
#define IN_PARTS(most, SWITCH)                                                                                        \
  for (int start = 0, parts = (count + (most) - 1) / (most), part = 0; part < parts; part++) {                        \
    const int n = (count - start + parts - part - 1) / (parts - part);                                                \
    SWITCH(n)                                                                                                         \
    row.input += n * taps.step, row.output += n * row.spacing, start += n;                                            \
  }

#define PART forward_pixels
FUNCTION void L(one_block)(int count, Taps taps, Row row) { IN_PARTS(MOST_SUMS, ONE_BLOCK) }
FUNCTION void L(two_blocks)(int count, Taps taps, Row row) { IN_PARTS(MOST_SUMS / 2, TWO_BLOCKS) }
#undef PART
#define PART thin_pixels
FUNCTION void L(thin)(int count, Taps taps, Row row) { IN_PARTS(MOST_SUMS, ONE_BLOCK) }
#undef PART

// All `channels` of a row: two blocks at a time if the row is short, so that enough sums are in flight.
FUNCTION void L(convolve)(int count, int channels, Taps taps, Row row) {
  const int two = 2 * count <= MOST_SUMS;
  for (int o = 0; o < channels;) {
    const int blocks = two && o + 2 * LANES <= channels ? 2 : 1;
    (blocks == 2 ? L(two_blocks) : L(one_block))(count, taps, row);
    o += blocks * LANES;
    row.weights += blocks * LANES, row.output += blocks * LANES;
    if (row.bias) row.bias += blocks * LANES;
  }
}

// Applies the activation to n values in place.
FUNCTION void L(activate)(long n, float *values, int activation) {
  if (activation == ELU)
    for (long j = 0; j < n; j += LANES) L(store)(values + j, L(elu)(L(load)(values + j)));
  else
    for (long j = 0; j < n; j += LANES) L(store)(values + j, L(positive)(L(load)(values + j)));
}

// Multiplies n derivatives by those of the activation, which follow from its outputs.
FUNCTION void L(chain)(long n, float *slopes, const float *outputs, int activation) {
  const vec one = L(all)(activation == ELU ? 1.0f : 0.0f);
  for (long j = 0; j < n; j += LANES) {
    vec output = L(load)(outputs + j);
    vec slope = L(select)(output > 0.f, L(all)(1.0f), output * one + one);
    L(store)(slopes + j, L(load)(slopes + j) * slope);
  }
}

#undef PIXELS
#undef ONE_BLOCK
#undef TWO_BLOCKS
#undef IN_PARTS
#undef vec
#undef ivec
