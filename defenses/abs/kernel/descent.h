// Decoders, energies and descents. Included once per instruction set, whose widest vector has WIDEST lanes.
// `F(name)` appends the instruction set to a name.

// The vectors of a map with this many channels: the fewest lanes that hold them, or the widest.
FUNCTION int F(lanes)(int channels) {
  int lanes = 4;
  while (lanes < channels && lanes < WIDEST) lanes *= 2;
  return lanes;
}

#if WIDEST == 4
#define BY_LANES(lanes, name, ...) F4(name)(__VA_ARGS__)
#elif WIDEST == 8
#define BY_LANES(lanes, name, ...) ((lanes) == 4 ? F4(name)(__VA_ARGS__) : F8(name)(__VA_ARGS__))
#else
#define BY_LANES(lanes, name, ...) \
  ((lanes) == 4 ? F4(name)(__VA_ARGS__) : (lanes) == 8 ? F8(name)(__VA_ARGS__) : F16(name)(__VA_ARGS__))
#endif

FUNCTION long F(rounded)(long n, long to) { return (n + to - 1) / to * to; }

FUNCTION int F(at_least_0)(int n) { return n > 0 ? n : 0; }

// Lays out the maps, the packed weights and the scratch memory of a decoder.
FUNCTION Plan F(plan)(const Decoder *decoder) {
  Plan plan = {.latent = decoder->latent, .activation = decoder->activation, .layers = decoder->layers};
  plan.maps[0].size = decoder->size, plan.maps[0].channels = decoder->channels;
  for (int l = 1; l <= plan.layers; l++) {
    const Layer layer = plan.layer[l] = decoder->layer[l - 1];
    Map *in = plan.maps + l - 1, *out = plan.maps + l;
    out->channels = layer.channels;
    out->size = (in->size - 1) * layer.stride + layer.kernel - 2 * layer.padding;
    // What taps read beside the map, in pixels: zeros, so that no tap needs a condition.
    in->left = F(at_least_0)(layer.kernel - 1 - layer.padding + layer.stride - 1) / layer.stride;
    in->right = F(at_least_0)((out->size - 1 + layer.padding) / layer.stride - (in->size - 1));
    out->beside = layer.padding;
  }
  long weights = 0, scratch = 0;
  for (int l = 0; l <= plan.layers; l++) {
    Map *map = plan.maps + l;
    const int last = l == plan.layers;
    map->lanes = F(lanes)(map->channels);
    map->pitch = last ? map->channels : (int)F(rounded)(map->channels, map->lanes);
    map->row = (map->left + map->size + map->right) * (long)map->pitch;
    map->values = scratch, scratch += F(rounded)(last ? (long)map->size * map->size * map->channels : map->size * map->row, 16);
    map->slope_row = (2 * map->beside + map->size) * (long)map->pitch;
    map->slopes = scratch, scratch += F(rounded)(map->size * map->slope_row, 16);
    const long taps = l == 0 ? 0 : (long)plan.layer[l].kernel * plan.layer[l].kernel;
    if (l == 0) {
      plan.dense = weights, weights += F(rounded)(plan.latent * (long)map->size * map->size * map->pitch, 16);
      plan.bias[0] = weights, weights += F(rounded)((long)map->size * map->size * map->pitch, 16);
    } else {
      plan.forward[l] = weights, weights += last ? 0 : F(rounded)(taps * plan.maps[l - 1].channels * map->pitch, 16);
      plan.backward[l] = weights, weights += F(rounded)(taps * map->channels * plan.maps[l - 1].pitch, 16);
      plan.bias[l] = weights, weights += F(rounded)(map->pitch, 16);
    }
  }
  plan.pixels = plan.maps[plan.layers].size * plan.maps[plan.layers].size * plan.maps[plan.layers].channels;
  const long pixels = F(rounded)(plan.pixels, 16);
  plan.image = scratch, plan.decoded = scratch + pixels, plan.derivative = scratch + 2 * pixels;
  scratch += 3 * pixels;
  plan.weights = weights, plan.scratch = scratch;
  return plan;
}

EXPORT void F(sizes)(const Decoder *decoder, int64_t *weights, int64_t *scratch) {
  const Plan plan = F(plan)(decoder);
  *weights = plan.weights, *scratch = plan.scratch;
}

// Packs the weights of one class, given one after the other: the dense layer (L, size, size, channels) and its bias, then
// each transposed convolution (in, out, k, k) and its bias. `packed` is zero before.
EXPORT void F(pack)(const Decoder *decoder, const float *natural, float *packed) {
  const Plan plan = F(plan)(decoder);
  const Map first = plan.maps[0];
  const int positions = first.size * first.size;
  for (int i = 0; i <= plan.latent; i++)
    for (int j = 0; j < positions; j++)
      for (int c = 0; c < first.channels; c++) {
        const long row = i < plan.latent ? plan.dense + (long)i * positions * first.pitch : plan.bias[0];
        packed[row + j * first.pitch + c] = *natural++;
      }
  for (int l = 1; l <= plan.layers; l++) {
    const Map in = plan.maps[l - 1], out = plan.maps[l];
    const int taps = plan.layer[l].kernel * plan.layer[l].kernel;
    for (int i = 0; i < in.channels; i++)
      for (int o = 0; o < out.channels; o++)
        for (int t = 0; t < taps; t++) {
          if (l < plan.layers) packed[plan.forward[l] + ((long)t * in.channels + i) * out.pitch + o] = *natural;
          packed[plan.backward[l] + ((long)t * out.channels + o) * in.pitch + i] = *natural++;
        }
    for (int o = 0; o < out.channels; o++) packed[plan.bias[l] + o] = *natural++;
  }
}

// Rows of a transposed convolution of stride s: output row y sees input row i through tap a where y + padding = s i + a.
FUNCTION void F(forward_layer)(const Plan *plan, int l, const float *weights, float *scratch) {
  const Layer layer = plan->layer[l];
  const Map in = plan->maps[l - 1], out = plan->maps[l];
  const int s = layer.stride, k = layer.kernel, p = layer.padding, last = l == plan->layers;
  const long tap = last ? in.pitch : (long)in.channels * out.pitch;  // between the weights of two taps
  const float *values = scratch + in.values;
  float *output = scratch + out.values + (last ? 0 : out.left * out.pitch);
  const long output_row = last ? (long)out.size * out.channels : out.row;
  for (int y = 0; y < out.size; y++) {
    int a = (y + p) % s, rows = 0;
    while (a < k && (y + p - a) / s >= in.size) a += s;
    for (int b = a; b < k && y + p - b >= 0; b += s) rows++;
    for (int x = 0; x < s && x < out.size; x++) {
      const int b = (x + p) % s, columns = (k - b + s - 1) / s;
      const Taps taps = {
          .rows = rows, .columns = columns, .channels = last ? in.pitch : in.channels,
          .row_source = -in.row, .column_source = -in.pitch, .row_weight = s * k * tap, .column_weight = s * tap,
          .step = in.pitch, .pitch = out.pitch,
      };
      Row row = {
          .input = values + (y + p - a) / s * in.row + (in.left + (x + p - b) / s) * in.pitch,
          .weights = weights + plan->forward[l] + ((long)a * k + b) * tap,
          .bias = weights + plan->bias[l],
          .output = output + y * output_row + x * out.pitch,
          .spacing = s * out.pitch,
      };
      const int count = (out.size - x + s - 1) / s;
      if (!last) {
        BY_LANES(out.lanes, convolve, count, out.pitch, taps, row);
        continue;
      }
      row.weights = weights + plan->backward[l] + ((long)a * k + b) * out.channels * in.pitch;
      Taps thin = taps;
      thin.row_weight *= out.channels, thin.column_weight *= out.channels;
      for (int o = 0; o < out.channels; o++) {
        BY_LANES(in.lanes, thin, count, thin, row);
        row.weights += in.pitch, row.bias++, row.output++;
      }
    }
    if (!last) BY_LANES(out.lanes, activate, out.size * out.pitch, output + y * output_row, plan->activation);
  }
}

FUNCTION void F(backward_layer)(const Plan *plan, int l, const float *weights, float *scratch) {
  const Layer layer = plan->layer[l];
  const Map in = plan->maps[l - 1], out = plan->maps[l];
  const int s = layer.stride, k = layer.kernel, p = layer.padding;
  const long tap = (long)out.channels * in.pitch;
  for (int i = 0; i < in.size; i++) {
    int a = F(at_least_0)(p - s * i), rows = 0;
    for (int b = a; b < k && s * i + b - p < out.size; b++) rows++;
    const Taps taps = {
        .rows = rows, .columns = k, .channels = out.channels,
        .row_source = out.slope_row, .column_source = out.pitch, .row_weight = k * tap, .column_weight = tap,
        .step = s * out.pitch, .pitch = in.pitch,
    };
    const Row row = {
        .input = scratch + out.slopes + (s * i + a - p) * out.slope_row,
        .weights = weights + plan->backward[l] + a * k * tap,
        .output = scratch + in.slopes + i * in.slope_row + in.beside * in.pitch,
        .spacing = in.pitch,
    };
    BY_LANES(in.lanes, convolve, in.size, in.pitch, taps, row);
    const float *outputs = scratch + in.values + i * in.row + in.left * in.pitch;
    BY_LANES(in.lanes, chain, in.size * in.pitch, row.output, outputs, plan->activation);
  }
}

FUNCTION void F(forward_dense)(const Plan *plan, const float *weights, const float *z, float *scratch) {
  const Map map = plan->maps[0];
  const long width = (long)map.size * map.size * map.pitch;
  for (int y = 0; y < map.size; y++)
    for (int x = 0; x < map.size; x++) {
      const long j = (y * map.size + x) * map.pitch;
      const float *matrix = weights + plan->dense + j, *bias = weights + plan->bias[0] + j;
      float *output = scratch + map.values + y * map.row + (map.left + x) * map.pitch;
      BY_LANES(map.lanes, dense, plan->latent, map.pitch, width, z, matrix, bias, output);
      BY_LANES(map.lanes, activate, map.pitch, output, plan->activation);
    }
}

FUNCTION void F(backward_dense)(const Plan *plan, const float *weights, float *gradient, const float *scratch) {
  const Map map = plan->maps[0];
  const long width = (long)map.size * map.size * map.pitch;
  for (int i = 0; i < plan->latent; i++) {
    W(floats) sum[4] = {0};
    const float *row = weights + plan->dense + i * width, *slopes = scratch + map.slopes;
    long j = 0;
    for (; j + 4 * WIDEST <= width; j += 4 * WIDEST)
      UNROLLED for (int k = 0; k < 4; k++) sum[k] += W(load)(row + j + k * WIDEST) * W(load)(slopes + j + k * WIDEST);
    float rest = 0;
    for (; j < width; j++) rest += row[j] * slopes[j];
    gradient[i] = W(sum)((sum[0] + sum[1]) + (sum[2] + sum[3])) + rest;
  }
}

// Decodes z into the scratch memory, as values before the sigmoid.
FUNCTION void F(decode)(const Plan *plan, const float *weights, const float *z, float *scratch) {
  F(forward_dense)(plan, weights, z, scratch);
  for (int l = 1; l <= plan->layers; l++) F(forward_layer)(plan, l, weights, scratch);
}

// Applies the sigmoid, and returns the squared error beyond the slack. With `differentiate`, the slopes of the last map
// become the error's derivative.
FUNCTION float F(error)(const Plan *plan, float slack, int differentiate, float *scratch) {
  const Map map = plan->maps[plan->layers];
  const long width = F(rounded)(plan->pixels, 16);
  W(floats) total = {0};
  for (long j = 0; j < width; j += WIDEST) {
    W(floats) value = 1.0f / (1.0f + W(exponential)(-W(load)(scratch + map.values + j)));
    W(floats) error = value - W(load)(scratch + plan->image + j);
    if (slack > 0) {
      W(floats) free = W(select)(error > slack, W(all)(slack), error);
      error -= W(select)(free < -slack, W(all)(-slack), free);
    }
    total += error * error;
    W(store)(scratch + plan->decoded + j, value);
    if (differentiate) W(store)(scratch + plan->derivative + j, 2.0f * error * value * (1.0f - value));
  }
  if (differentiate)
    for (int y = 0; y < map.size; y++)
      memcpy(scratch + map.slopes + y * map.slope_row + map.beside * map.pitch,
             scratch + plan->derivative + (long)y * map.size * map.pitch, sizeof(float) * map.size * map.pitch);
  return W(sum)(total);
}

FUNCTION float F(dot)(int n, const float *a, const float *b) {
  W(floats) sum = {0};
  int j = 0;
  for (; j + WIDEST <= n; j += WIDEST) sum += W(load)(a + j) * W(load)(b + j);
  float rest = 0;
  for (; j < n; j++) rest += a[j] * b[j];
  return W(sum)(sum) + rest;
}

// output (n) = input (m) matrix (m, n) + bias (n), without a bias if it is null.
FUNCTION void F(affine)(int m, int n, const float *input, const float *matrix, const float *bias, float *output) {
  for (int j = 0; j < n; j++) output[j] = bias ? bias[j] : 0;
  int j = 0;
  for (; j + 8 * WIDEST <= n; j += 8 * WIDEST) {
    W(floats) sums[8];
    UNROLLED for (int k = 0; k < 8; k++) sums[k] = W(load)(output + j + k * WIDEST);
    for (int i = 0; i < m; i++)
      UNROLLED for (int k = 0; k < 8; k++) sums[k] += input[i] * W(load)(matrix + (long)i * n + j + k * WIDEST);
    UNROLLED for (int k = 0; k < 8; k++) W(store)(output + j + k * WIDEST, sums[k]);
  }
  for (; j + WIDEST <= n; j += WIDEST) {
    W(floats) sum = W(load)(output + j);
    for (int i = 0; i < m; i++) sum += input[i] * W(load)(matrix + (long)i * n + j);
    W(store)(output + j, sum);
  }
  for (; j < n; j++)
    for (int i = 0; i < m; i++) output[j] += input[i] * matrix[(long)i * n + j];
}

FUNCTION void F(leak)(int n, float *values, float slope) {
  for (int j = 0; j < n; j++) values[j] = values[j] > 0 ? values[j] : slope * values[j];
}

// The penalty -weight log D(z) = weight softplus(-D's logit) of a discriminator with two hidden layers of Leaky ReLU.
// Its weights lie one after the other: (L, first), (first), (first, second), (second), (second), (1), and the middle
// matrix transposed. Adds the derivative to `gradient` where there is one.
FUNCTION float F(discriminated)(const Objective *objective, const float *network, int latent, const float *z,
                                float *gradient, float *memory) {
  const int first = objective->first, second = objective->second;
  const float *matrix1 = network, *bias1 = matrix1 + (long)latent * first, *matrix2 = bias1 + first,
              *bias2 = matrix2 + (long)first * second, *row3 = bias2 + second, *bias3 = row3 + second,
              *transposed2 = bias3 + 1;
  float *hidden1 = memory, *hidden2 = memory + first;
  F(affine)(latent, first, z, matrix1, bias1, hidden1);
  F(leak)(first, hidden1, objective->leak);
  F(affine)(first, second, hidden1, matrix2, bias2, hidden2);
  F(leak)(second, hidden2, objective->leak);
  const float logit = F(dot)(second, hidden2, row3) + *bias3;
  const float value = logit > 0 ? log1pf(expf(-logit)) : log1pf(expf(logit)) - logit;
  if (gradient) {
    const float outer = -objective->discriminator_weight / (1 + expf(logit));
    float *slopes2 = hidden2 + second, *slopes1 = slopes2 + second;
    for (int j = 0; j < second; j++) slopes2[j] = outer * row3[j] * (hidden2[j] > 0 ? 1 : objective->leak);
    F(affine)(second, first, slopes2, transposed2, 0, slopes1);
    for (int j = 0; j < first; j++) slopes1[j] *= hidden1[j] > 0 ? 1 : objective->leak;
    for (int i = 0; i < latent; i++) gradient[i] += F(dot)(first, slopes1, matrix1 + (long)i * first);
  }
  return objective->discriminator_weight * value;
}

// Energy of one image under one class at the parameters p after `taken` steps, and its derivative there where `gradient`
// is not null. A variational objective draws z from N(mu, sigma^2), with p = (mu, log sigma).
FUNCTION float F(energy)(const Plan *plan, const Objective *objective, const Task *task, const float *p, int taken,
                         float *gradient, float *scratch) {
  const int n = plan->latent;
  float z[MOST_LATENTS], spread[MOST_LATENTS];
  for (int i = 0; i < n; i++) {
    spread[i] = objective->noise ? expf(p[n + i]) * task->noise[(long)taken * objective->noise_step + i] : 0;
    z[i] = p[i] + spread[i];
  }
  F(decode)(plan, task->weights, z, scratch);
  float value = F(error)(plan, task->slack, gradient != 0, scratch);
  if (gradient) {
    for (int l = plan->layers; l > 0; l--) F(backward_layer)(plan, l, task->weights, scratch);
    F(backward_dense)(plan, task->weights, gradient, scratch);
  }
  for (int i = 0; i < n; i++) {
    value += objective->variance * z[i] * z[i];
    if (gradient) gradient[i] += 2 * objective->variance * z[i];
  }
  if (objective->first)
    value += F(discriminated)(objective, task->network, n, z, gradient, scratch + plan->scratch);
  if (!objective->noise) return value;
  for (int i = 0; i < n; i++) {
    const float mean = p[i], logarithm = p[n + i], variance = expf(2 * logarithm);
    value += objective->divergence * .5f * (mean * mean + variance - 2 * logarithm - 1);
    if (!gradient) continue;
    gradient[n + i] = gradient[i] * spread[i] + objective->divergence * (variance - 1);
    gradient[i] += objective->divergence * mean;
  }
  return value;
}

// One step of Adam (Kingma & Ba 2015), and back into the ball of latents.
FUNCTION void F(step)(State *state, int n, float learning_rate, float most_norm) {
  state->taken++;
  state->power_1 *= BETA_1, state->power_2 *= BETA_2;
  const float rate = (float)(learning_rate / (1 - state->power_1)), scale = (float)(1 / sqrt(1 - state->power_2));
  float square = 0;
  for (int i = 0; i < n; i++) {
    const float g = state->gradient[i];
    state->mean[i] += (float)(1 - BETA_1) * (g - state->mean[i]);
    state->square[i] = (float)BETA_2 * state->square[i] + (float)(1 - BETA_2) * g * g;
    const float deviation = sqrtf(state->square[i] > FLT_MIN ? state->square[i] : FLT_MIN) * scale + EPSILON;
    state->p[i] -= rate * state->mean[i] / deviation;
    square += state->p[i] * state->p[i];
  }
  const float norm = sqrtf(square);
  if (norm > most_norm)
    for (int i = 0; i < n; i++) state->p[i] *= most_norm / norm;
}

FUNCTION Task F(task)(const Plan *plan, const Problem *problem, int k, long image) {
  const Objective *objective = &problem->objective;
  Task task = {.weights = problem->weights + k * plan->weights};
  if (objective->first) task.network = objective->network + k * objective->network_step;
  if (objective->noise) task.noise = objective->noise + (k * problem->images + image) * plan->latent;
  if (objective->slack) task.slack = objective->slack[image];
  return task;
}

FUNCTION void F(show)(const Plan *plan, const Problem *problem, long image, float *scratch) {
  for (int i = 0; i < plan->pixels; i++) scratch[plan->image + i] = problem->x[image * plan->pixels + i];
  for (long i = plan->pixels; i < F(rounded)(plan->pixels, 16); i++) scratch[plan->image + i] = .5f;  // no error there
}

// Descends from p (K, N, P) under every class, in place, for `evaluations` - 1 steps. Writes the values at the end (K, N),
// the decoded images (N, K, D) unless they are null, and the derivatives there (K, N, P) unless they are null. Leaves the
// rows of other pairs than `problem->wanted` as they are.
EXPORT void F(minimize)(const Decoder *decoder, const Problem *problem, int evaluations, float *values, float *decoded,
                        float *derivatives, float *scratch) {
  const Plan plan = F(plan)(decoder);
  const int n = problem->objective.noise ? 2 * plan.latent : plan.latent;
  for (int k = 0; k < problem->classes; k++)
    for (int image = 0; image < problem->images; image++) {
      const Task task = F(task)(&plan, problem, k, image);
      const long row = (long)k * problem->images + image;
      if (problem->wanted && !problem->wanted[row]) continue;
      F(show)(&plan, problem, image, scratch);
      State state = {.power_1 = 1, .power_2 = 1};
      memcpy(state.p, problem->p + row * n, n * sizeof(float));
      while (state.taken < evaluations - 1) {
        F(energy)(&plan, &problem->objective, &task, state.p, state.taken, state.gradient, scratch);
        F(step)(&state, n, problem->learning_rate, problem->objective.most_norm);
      }
      values[row] = F(energy)(&plan, &problem->objective, &task, state.p, state.taken,
                              derivatives ? state.gradient : 0, scratch);
      memcpy(problem->p + row * n, state.p, n * sizeof(float));
      if (derivatives) memcpy(derivatives + row * n, state.gradient, n * sizeof(float));
      if (decoded)
        memcpy(decoded + ((long)image * problem->classes + k) * plan.pixels, scratch + plan.decoded,
               plan.pixels * sizeof(float));
    }
}

// Gives up the live classes whose energy exceeds the least one by more than the gap. Returns how many are left.
FUNCTION int F(contested)(int classes, long images, const float *energies, float gap, State *states) {
  float least = INFINITY;
  int live = 0;
  for (int k = 0; k < classes; k++) {
    const float energy = energies[k * images];
    if (states[k].live && (energy < least || energy != energy)) least = energy;  // a NaN stays, and gives up none
  }
  for (int k = 0; k < classes; k++) {
    if (energies[k * images] > least + gap) states[k].live = 0;
    live += states[k].live;
  }
  return live;
}

// Decides for the class of least scaled energy. After t steps, the classes whose energy exceeds the least one by more
// than gaps[t] are given up. `energies` (K, N) holds the values at p (K, N, P) before, and the last known ones after;
// `taken` (K, N) becomes the number of evaluations.
EXPORT void F(decide)(const Decoder *decoder, const Problem *problem, int evaluations, const float *scales,
                      const float *gaps, float *energies, int32_t *taken, int64_t *decisions, State *states,
                      float *scratch) {
  const Plan plan = F(plan)(decoder);
  const int n = plan.latent, classes = problem->classes, last = evaluations - 1;
  const long images = problem->images;
  for (long image = 0; image < images; image++) {
    F(show)(&plan, problem, image, scratch);
    for (int k = 0; k < classes; k++) {
      states[k] = (State){.power_1 = 1, .power_2 = 1, .live = 1};
      memcpy(states[k].p, problem->p + (k * images + image) * n, n * sizeof(float));
      energies[k * images + image] *= scales[k];
      taken[k * images + image] = 0;
    }
    int live = F(contested)(classes, images, energies + image, gaps[0], states);
    for (int t = 0; live > 1 && t < last;) {
      do t++;
      while (t < last && gaps[t] == INFINITY);
      for (int k = 0; k < classes; k++) {
        State *state = states + k;
        if (!state->live) continue;
        const Task task = F(task)(&plan, problem, k, image);
        const int before = state->taken;
        while (state->taken < t) {
          // The derivative is known where the classes were compared.
          if (state->taken > before || !before)
            F(energy)(&plan, &problem->objective, &task, state->p, state->taken, state->gradient, scratch);
          F(step)(state, n, problem->learning_rate, problem->objective.most_norm);
        }
        float *gradient = t < last ? state->gradient : 0;
        energies[k * images + image] =
            scales[k] * F(energy)(&plan, &problem->objective, &task, state->p, t, gradient, scratch);
        taken[k * images + image] = t + 1;
      }
      live = F(contested)(classes, images, energies + image, gaps[t], states);
    }
    int64_t best = -1;
    float least = INFINITY;
    for (int k = 0; k < classes; k++) {
      const float energy = energies[k * images + image];
      if (states[k].live && (best < 0 || energy < least || (energy != energy && least == least))) best = k, least = energy;
    }
    decisions[image] = best;
  }
}
