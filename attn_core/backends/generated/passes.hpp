// Softmax attention over sorted pairs, forward and backward, as attn_core/backends/cpu does it for the
// built-in scores.

// --- Forward ---

struct Row {
  T largest[H], total[H];
};

APART void forward_pairs(const Call& c, int64_t row, int64_t begin, int64_t end, Row& s, T* output) {
  Block b;
  const T* values[BLOCK];
  const char* next[BLOCK];
  alignas(64) T w[BLOCK * H], keep[BLOCK * H];
  T most[H], shift[H], scale[H];
  const bool shared = c.value == c.key && DV == DK && c.value_step == c.key_step;
  for (int h = 0; h < H; h++) s.largest[h] = LOWEST, s.total[h] = 0;
  for (int e = 0; e < BLOCK; e++) b.q[e] = c.query + row * c.query_step;
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = int(std::min<int64_t>(end - at, BLOCK));
    find(c.by_query, at, n, c.key, c.key_step, b.k, b.next);
    find_pairs(c, c.by_query, at, n, b.p);
    score(n, b, c.par, DK * int(sizeof(T)), w);
    add_bias(c, c.by_query, at, n, w);
    for (int h = 0; h < H; h++) most[h] = s.largest[h];
    for (int e = 0; e < n; e++) {
      for (int h = 0; h < H; h++) most[h] = w[e * H + h] > most[h] ? w[e * H + h] : most[h];
    }
    for (int h = 0; h < H; h++) {
      shift[h] = most[h] == LOWEST ? T(0) : most[h];
      scale[h] = s.largest[h] - shift[h];
      s.largest[h] = most[h];
    }
    exponentials(H, scale);
    for (int e = 0; e < n; e++) {
      for (int h = 0; h < H; h++) w[e * H + h] -= shift[h];
    }
    exponentials(n * H, w);
    for (int h = 0; h < H; h++) s.total[h] *= scale[h];
    for (int e = 0; e < n; e++) {
      for (int h = 0; h < H; h++) s.total[h] += w[e * H + h];
    }
    if (c.drops) {
      draw(c, c.by_query, at, n, keep);
      for (int i = 0; i < n * H; i++) w[i] *= keep[i];
    }
    if (!shared) find(c.by_query, at, n, c.value, c.value_step, values, next);
    gather(n, shared ? b.k : values, shared ? nullptr : next, w, at == begin ? nullptr : scale,
           output);
  }
}

APART void finish(const Call& c, int64_t row, const Row& s, T* output) {
  for (int h = 0; h < H; h++) {
    c.maximum[row * c.numbers_step + h] = s.largest[h];
    c.total[row * c.numbers_step + h] = s.total[h];
    c.log_sum_exp[row * c.numbers_step + h] = s.largest[h] + logarithm(s.total[h]);
    const T scale = s.total[h] == 0 ? T(0) : T(1) / s.total[h];
    for (int d = 0; d < DV; d++) output[h * DV + d] *= scale;
  }
}

void forward(const Call& c) {
  constexpr int64_t partial = H * (2 + DV);
  run(
      c.by_query, c.threads, partial, nullptr,
      [&](int64_t row, T*) {
        Row s;
        T* output = c.output + row * c.output_step;
        const int64_t begin = c.by_query.pointer[row], end = c.by_query.pointer[row + 1];
        for (int i = 0; begin == end && i < H * DV; i++) output[i] = 0;
        forward_pairs(c, row, begin, end, s, output);
        finish(c, row, s, output);
      },
      [&](int64_t row, int64_t begin, int64_t end, T* sums, T*) {
        Row s;
        forward_pairs(c, row, begin, end, s, sums + 2 * H);
        for (int h = 0; h < H; h++) sums[h] = s.largest[h], sums[H + h] = s.total[h];
      },
      [&](int64_t row, const T* partials, int64_t count) {
        Row s;
        T* output = c.output + row * c.output_step;
        for (int i = 0; i < H * DV; i++) output[i] = 0;
        for (int h = 0; h < H; h++) {
          T most = LOWEST, total = 0;
          for (int64_t i = 0; i < count; i++) {
            const T here = partials[i * partial + h];
            most = here > most || here != here ? here : most;
          }
          const T shift = most == LOWEST ? T(0) : most;
          for (int64_t i = 0; i < count; i++) {
            const T* part = partials + i * partial;
            const T scale = exponential(part[h] - shift);
            total += scale * part[H + h];
            for (int d = 0; d < DV; d++) {
              output[h * DV + d] += scale * part[2 * H + h * DV + d];
            }
          }
          s.largest[h] = most;
          s.total[h] = total;
        }
        finish(c, row, s, output);
      });
}

// --- Backward ---

// Of each query and head: what is subtracted from its logits, what their exponentials are multiplied
// with, and the mean gradient of its weights.
constexpr int NUMBERS = 3;

// Dropped weights, and gradients of logits, of those of weights and of logits.
APART void differentiate(int n, const T* const* numbers, const T* keep, T* __restrict w,
                          T* __restrict g) {
  for (int e = 0; e < n; e++) {
    for (int h = 0; h < H; h++) w[e * H + h] -= numbers[e][h];
  }
  exponentials(n * H, w);
  for (int e = 0; e < n; e++) {
    for (int h = 0; h < H; h++) {
      const int i = e * H + h;
      const T weight = w[i] * numbers[e][H + h], kept = keep ? keep[i] : T(1);
      g[i] = weight * (g[i] * kept - numbers[e][2 * H + h]);
      w[i] = weight * kept;
    }
  }
}

// Gradients of weights: the products of values with the gradients of outputs.
APART void products(int n, const T* const* grads, const char* const* next, const T* const* values,
                     T* __restrict out) {
  for (int h = 0; h < H; h++) {
    for (int e = 0; e < n; e++) {
      const T *grad = grads[e] + h * DV, *value = values[e] + h * DV;
      if (next) ask(next[e], h, DV * int(sizeof(T)));
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int d = 0; d < DV; d++) sum += grad[d] * value[d];
      out[e * H + h] = sum;
    }
  }
}

// Gradients of a row's logits sum to that of its log-sum-exp. What they miss it by is the error of
// their mean, which is made of a rounded output: where scores are large and one weight is above one
// half, that error is taken off the mean, since there gradients are small differences.
APART void centre(const Call& c, int64_t row, T* numbers) {
  const int64_t begin = c.by_query.pointer[row], end = c.by_query.pointer[row + 1];
  Block b;
  const T *values[BLOCK], *grads[BLOCK], *same[BLOCK];
  const char* next[BLOCK];
  alignas(64) T w[BLOCK * H], g[BLOCK * H], keep[BLOCK * H];
  T sums[H] = {};
  for (int e = 0; e < BLOCK; e++) {
    b.q[e] = c.query + row * c.query_step;
    grads[e] = c.grad_output + row * c.grad_step;
    same[e] = numbers;
  }
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = int(std::min<int64_t>(end - at, BLOCK));
    find(c.by_query, at, n, c.key, c.key_step, b.k, b.next);
    find_pairs(c, c.by_query, at, n, b.p);
    score(n, b, c.par, DK * int(sizeof(T)), w);
    add_bias(c, c.by_query, at, n, w);
    find(c.by_query, at, n, c.value, c.value_step, values, next);
    products(n, grads, next, values, g);
    if (c.drops) draw(c, c.by_query, at, n, keep);
    differentiate(n, same, c.drops ? keep : nullptr, w, g);
    for (int e = 0; e < n; e++) {
      for (int h = 0; h < H; h++) sums[h] += g[e * H + h];
    }
  }
  const T* given = c.grad_log_sum_exp + row * c.grad_numbers_step;
  for (int h = 0; h < H; h++) numbers[2 * H + h] += sums[h] - given[h];
}

APART void statistics_row(const Call& c, int64_t row, T* numbers) {
  const T* output = c.output + row * c.output_step;
  const T* grad = c.grad_output + row * c.grad_step;
  bool centred = false;
  for (int h = 0; h < H; h++) {
    const T most = c.maximum[row * c.numbers_step + h], total = c.total[row * c.numbers_step + h];
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int d = 0; d < DV; d++) sum += output[h * DV + d] * grad[h * DV + d];
    numbers[h] = most == LOWEST ? T(0) : most;
    numbers[H + h] = total == 0 ? T(0) : T(1) / total;
    numbers[2 * H + h] = sum - c.grad_log_sum_exp[row * c.grad_numbers_step + h];
    centred |= most * most > LARGE * LARGE && total >= 1 && total < 2;
  }
  if (centred && c.by_query.pointer[row + 1] - c.by_query.pointer[row] > 1) {
    centre(c, row, numbers);
  }
}

APART void by_key_pairs(const Call& c, const T* statistics, T* left, int64_t row, int64_t begin,
                  int64_t end, T* to_key, T* to_value, T* to_par) {
  Block b;
  const T *grads[BLOCK], *values[BLOCK], *numbers[BLOCK];
  const char* next[BLOCK];
  T* pairs[BLOCK];
  alignas(64) T w[BLOCK * H], g[BLOCK * H], keep[BLOCK * H];
  T ones[H], unused_key[H * DK], unused_par[NP + 1];
  for (int h = 0; h < H; h++) ones[h] = 1;
  const bool wants = to_key || to_par;
  if (!to_key) to_key = unused_key;
  if (!to_par) to_par = unused_par;
  for (int i = 0; i < H * DK; i++) to_key[i] = 0;
  for (int e = 0; e < BLOCK; e++) {
    b.k[e] = c.key + row * c.key_step;
    values[e] = c.value + row * c.value_step;
  }
  const Order& o = c.by_key;
  const int64_t last = o.pointer[o.num] - 1;
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = int(std::min<int64_t>(end - at, BLOCK));
    for (int e = 0; e < n; e++) {
      numbers[e] = statistics + o.other[at + e] * (NUMBERS * H);
      const T* later = statistics + o.other[std::min(at + e + AHEAD, last)] * (NUMBERS * H);
      for (int i = 0; i < NUMBERS * H; i += 64 / int(sizeof(T))) __builtin_prefetch(later + i);
    }
    find(o, at, n, c.query, c.query_step, b.q, b.next);
    find_pairs(c, o, at, n, b.p);
    score(n, b, c.par, DQ * int(sizeof(T)), w);
    add_bias(c, o, at, n, w);
    find(o, at, n, c.grad_output, c.grad_step, grads, next);
    products(n, grads, next, values, g);
    if (c.drops) draw(c, o, at, n, keep);
    differentiate(n, numbers, c.drops ? keep : nullptr, w, g);
    if (to_value) gather(n, grads, nullptr, w, at == begin ? nullptr : ones, to_value);
    if (left) std::copy(g, g + n * H, left + at * H);
    for (int e = 0; c.grad_bias && e < n; e++) {
      T* bias = c.grad_bias + place_of(o, at + e) * c.grad_bias_step;
      for (int h = 0; h < H; h++) bias[h] = g[e * H + h];
    }
    if (wants) of_key(n, b, c.par, g, to_key, to_par);
    if (DP && c.grad_pair) {
      for (int e = 0; e < n; e++) {
        pairs[e] = c.grad_pair + place_of(o, at + e) * c.grad_pair_step;
        for (int i = 0; i < HP * DP; i++) pairs[e][i] = 0;
      }
      of_pair(n, b, c.par, g, pairs);
    }
  }
}

APART void by_query_pairs(const Call& c, const T* left, const uint32_t* from, int64_t row, int64_t begin,
                    int64_t end, T* to_query) {
  Block b;
  alignas(64) T g[BLOCK * H];
  for (int i = 0; i < H * DQ; i++) to_query[i] = 0;
  for (int e = 0; e < BLOCK; e++) b.q[e] = c.query + row * c.query_step;
  const int64_t last = c.by_query.pointer[c.by_query.num] - 1;
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = int(std::min<int64_t>(end - at, BLOCK));
    for (int e = 0; e < n; e++) {
      __builtin_prefetch(left + int64_t(from[std::min(at + e + AHEAD, last)]) * H);
      const T* own = left + int64_t(from[at + e]) * H;
      for (int h = 0; h < H; h++) g[e * H + h] = own[h];
    }
    find(c.by_query, at, n, c.key, c.key_step, b.k, b.next);
    find_pairs(c, c.by_query, at, n, b.p);
    of_query(n, b, c.par, DK * int(sizeof(T)), g, to_query);
  }
}

INLINE void add_parts(T* out, const T* parts, int64_t count, int64_t step, int size) {
  for (int i = 0; i < size; i++) {
    T sum = 0;
    for (int64_t part = 0; part < count; part++) sum += parts[part * step + i];
    out[i] = sum;
  }
}

// Large pages, of which fewer are looked up: a burst of fresh small ones costs more than the work.
void use_large_pages(void* data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  const uintptr_t page = 1 << 21, begin = (uintptr_t(data) + page - 1) / page * page;
  const uintptr_t end = (uintptr_t(data) + uintptr_t(bytes)) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

void backward(const Call& c) {
  const int64_t queries = c.by_query.num, pairs = c.by_query.pointer[queries];
  std::unique_ptr<T[]> statistics(new T[queries * NUMBERS * H + 1]);
  constexpr int64_t TASK = 1 << 12;
  share((queries + TASK - 1) / TASK, c.threads, [&](int64_t i) {
    for (int64_t row = i * TASK; row < std::min(queries, (i + 1) * TASK); row++) {
      statistics_row(c, row, statistics.get() + row * NUMBERS * H);
    }
  });
  std::unique_ptr<T[]> left(c.grad_query ? new T[pairs * H + 1] : nullptr);
  if (left) use_large_pages(left.get(), pairs * H * int64_t(sizeof(T)));
  constexpr int64_t partial = H * (DK + DV);
  const auto key_of = [&](int64_t row) {
    return c.grad_key ? c.grad_key + row * c.grad_key_step : nullptr;
  };
  const auto value_of = [&](int64_t row) {
    return c.grad_value ? c.grad_value + row * c.grad_value_step : nullptr;
  };
  run(
      c.by_key, c.threads, partial, c.grad_par,
      [&](int64_t row, T* par) {
        const int64_t begin = c.by_key.pointer[row], end = c.by_key.pointer[row + 1];
        T* value = value_of(row);
        for (int i = 0; value && begin == end && i < H * DV; i++) value[i] = 0;
        by_key_pairs(c, statistics.get(), left.get(), row, begin, end, key_of(row), value, par);
      },
      [&](int64_t row, int64_t begin, int64_t end, T* sums, T* par) {
        by_key_pairs(c, statistics.get(), left.get(), row, begin, end,
                     c.grad_key ? sums : nullptr, c.grad_value ? sums + H * DK : nullptr, par);
      },
      [&](int64_t row, const T* parts, int64_t count) {
        if (c.grad_key) add_parts(key_of(row), parts, count, partial, H * DK);
        if (c.grad_value) add_parts(value_of(row), parts + H * DK, count, partial, H * DV);
      });
  if (!c.grad_query) return;
  std::unique_ptr<uint32_t[]> position(new uint32_t[c.places + 1]()), from(new uint32_t[pairs + 1]);
  for (int64_t e = 0; e < pairs; e++) position[place_of(c.by_key, e)] = uint32_t(e);
  share((pairs + TASK - 1) / TASK, c.threads, [&](int64_t i) {
    for (int64_t e = i * TASK; e < std::min(pairs, (i + 1) * TASK); e++) {
      from[e] = position[place_of(c.by_query, e)];
    }
  });
  position.reset();
  run(
      c.by_query, c.threads, H * DQ, nullptr,
      [&](int64_t row, T*) {
        by_query_pairs(c, left.get(), from.get(), row, c.by_query.pointer[row],
                       c.by_query.pointer[row + 1], c.grad_query + row * c.grad_query_step);
      },
      [&](int64_t row, int64_t begin, int64_t end, T* sums, T*) {
        by_query_pairs(c, left.get(), from.get(), row, begin, end, sums);
      },
      [&](int64_t row, const T* parts, int64_t count) {
        add_parts(c.grad_query + row * c.grad_query_step, parts, count, H * DQ, H * DQ);
      });
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void attn_forward(const Call* call) { forward(*call); }
extern "C" __attribute__((visibility("default"))) void attn_backward(const Call* call) { backward(*call); }
