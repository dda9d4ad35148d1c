// Softmax over the pairs of each row, and the derivatives of such weights. A long row is read in
// parts first, which leave two numbers per head in `row_numbers`, then in parts again.
#pragma once
#include "backward.h"

namespace attn::VARIANT {

// The numbers given for the pairs [at, at + n), to s.logits.
template <class T>
INLINE void read_block(const Problem<T>& p, int64_t at, int n, Scratch<T>& s) {
  for (int e = 0; e < n; e++) {
    copy_heads(p.given[p.by_query.place[at + e]], p.heads, s.logits + e * p.lanes);
  }
}

// Leaves the largest number and the sum in s.largest and s.total, the last block in s.logits.
template <class T>
void softmax_read(const Problem<T>& p, const Functions<T>& f, int64_t begin, int64_t end,
                  Scratch<T>& s) {
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = end - at < BLOCK ? int(end - at) : BLOCK;
    read_block(p, at, n, s);
    f.normalise(p, n, s, at == begin);
  }
}

// From them, the log-sum-exp, what is subtracted (s.largest) and what exponentials are multiplied
// with (s.scale), all repeated as they are.
template <class T>
INLINE void softmax_finish(const Problem<T>& p, int64_t row, Scratch<T>& s) {
  for (int h = 0; h < period(p); h += 4) {
    const Vec<T, 4> total = load<T, 4>(s.total + h), most = load<T, 4>(s.largest + h);
    store<T, 4>(s.scale + h, total == T(0) ? Vec<T, 4>{} : T(1) / total);
    store<T, 4>(s.mean + h, most + log<T>(total));
    store<T, 4>(s.largest + h, most == -infinity(T()) ? Vec<T, 4>{} : most);
  }
  if (p.log_sum_exp) copy_heads(s.mean, p.heads, p.log_sum_exp[row]);
}

// Weights of the pairs [begin, end), given the statistics of the row.
template <class T>
void softmax_blocks(const Problem<T>& p, int64_t begin, int64_t end, Scratch<T>& s, bool there) {
  constexpr int W = WIDEST<T>;
  const int step = period(p);
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = end - at < BLOCK ? int(end - at) : BLOCK;
    if (!there) read_block(p, at, n, s);
    for (int h = 0; h < step; h += W) {
      const Vec<T, W> scale = load<T, W>(s.scale + h), largest = load<T, W>(s.largest + h);
      for (int i = h; i < n * p.lanes; i += step) {
        const Vec<T, W> x = load<T, W>(s.logits + i);
        store<T, W>(s.logits + i, scale * (there ? x : exp<T, W>(x - largest)));
      }
    }
    hand_out(p, p.by_query, at, n, s.logits, [&](int64_t i) { return p.made[i]; });
  }
}

template <class T>
void softmax_row(const Problem<T>& p, const Functions<T>& f, int64_t row, Scratch<T>& s) {
  const int64_t begin = p.by_query.pointer[row], end = p.by_query.pointer[row + 1];
  if (begin == end) {
    for (int h = 0; p.log_sum_exp && h < p.heads; h++) p.log_sum_exp[row][h] = -infinity(T());
    return;
  }
  softmax_read(p, f, begin, end, s);
  softmax_finish(p, row, s);
  if (p.made) softmax_blocks(p, begin, end, s, end - begin <= BLOCK);
}

template <class T>
void softmax_part(const Problem<T>& p, const Functions<T>& f, int64_t begin, int64_t end,
                  Scratch<T>& s, T* partial) {
  softmax_read(p, f, begin, end, s);
  for (int h = 0; h < p.heads; h++) {
    partial[h] = s.largest[h];
    partial[p.heads + h] = s.total[h];
  }
}

template <class T>
void softmax_merge(const Problem<T>& p, int64_t row, const T* partials, int64_t count,
                   Scratch<T>& s) {
  const int64_t heads = p.heads, step = p.partial_size(SOFTMAX);
  for (int64_t h = 0; h < heads; h++) {
    T most = -infinity(T()), total = 0;
    for (int64_t i = 0; i < count; i++) {
      const T here = partials[i * step + h];
      most = here > most || here != here ? here : most;
    }
    const T shift = most == -infinity(T()) ? T(0) : most;
    for (int64_t i = 0; i < count; i++) {
      const T* partial = partials + i * step;
      total += exp<T, 4>(all<T, 4>(partial[h] - shift))[0] * partial[heads + h];
    }
    s.largest[h] = most;
    s.total[h] = total;
  }
  softmax_finish(p, row, s);
  T* out = p.row_numbers[row];
  for (int64_t h = 0; h < heads; h++) {
    out[h] = s.largest[h];
    out[heads + h] = s.scale[h];
  }
}

template <class T>
void softmax_write(const Problem<T>& p, int64_t row, int64_t begin, int64_t end, Scratch<T>& s) {
  const T* found = p.row_numbers[row];
  repeat(p, found, s.largest);
  repeat(p, found + p.heads, s.scale);
  softmax_blocks(p, begin, end, s, false);
}

// u of a weight, for the derivatives: a power of it.
template <class T>
INLINE T power_of(const Problem<T>& p, Power power, T weight) {
  if (power == ONE) return weight;
  if (power == OTHER && weight != T(0)) return T(__builtin_pow(double(weight), 2 - p.alpha));
  if (power == ROOT) return sizeof(T) == 8 ? __builtin_sqrt(weight) : __builtin_sqrtf(weight);
  return weight != T(0) ? T(1) : T(0);
}

// sums = [Σ u g, Σ u] for each head, over the pairs [begin, end).
template <class T, Power P>
INLINE void gradient_read(const Problem<T>& p, int64_t begin, int64_t end, T* sums) {
  const int heads = p.heads;
  for (int h = 0; h < 2 * heads; h++) sums[h] = 0;
  for (int64_t at = begin; at < end; at++) {
    const int64_t place = p.by_query.place[at];
    const T *grad = p.given[place], *weight = p.weights[place];
    T* out = p.made[place];
#pragma omp simd
    for (int h = 0; h < heads; h++) {
      const T u = power_of(p, P, weight[h]);
      if constexpr (P == OTHER) out[h] = u;  // which takes long
      sums[h] += u * grad[h];
      sums[heads + h] += u;
    }
  }
}
template <class T, Power P>
INLINE void gradient_blocks(const Problem<T>& p, int64_t begin, int64_t end, const T* sums) {
  const int heads = p.heads;
  for (int64_t at = begin; at < end; at++) {
    const int64_t place = p.by_query.place[at];
    const T *grad = p.given[place], *weight = p.weights[place];
    T* out = p.made[place];
#pragma omp simd
    for (int h = 0; h < heads; h++) {
      // The weights of softmax sum to 1, or there are none
      const T mean = P == ONE || sums[heads + h] == T(0) ? sums[h] : sums[h] / sums[heads + h];
      const T u = P == OTHER ? out[h] : power_of(p, P, weight[h]);
      out[h] = u * (grad[h] - mean);
    }
  }
}

template <class T>
void gradient_part(const Problem<T>& p, int64_t begin, int64_t end, T* sums) {
  switch (p.power) {
    case ONE: gradient_read<T, ONE>(p, begin, end, sums); break;
    case ROOT: gradient_read<T, ROOT>(p, begin, end, sums); break;
    case ZERO: gradient_read<T, ZERO>(p, begin, end, sums); break;
    case OTHER: gradient_read<T, OTHER>(p, begin, end, sums); break;
  }
}
template <class T>
void gradient_write(const Problem<T>& p, int64_t begin, int64_t end, const T* sums) {
  switch (p.power) {
    case ONE: gradient_blocks<T, ONE>(p, begin, end, sums); break;
    case ROOT: gradient_blocks<T, ROOT>(p, begin, end, sums); break;
    case ZERO: gradient_blocks<T, ZERO>(p, begin, end, sums); break;
    case OTHER: gradient_blocks<T, OTHER>(p, begin, end, sums); break;
  }
}
template <class T>
void gradient_row(const Problem<T>& p, int64_t row, Scratch<T>& s) {
  const int64_t begin = p.by_query.pointer[row], end = p.by_query.pointer[row + 1];
  gradient_part(p, begin, end, s.logits);
  gradient_write(p, begin, end, s.logits);
}

}  // namespace attn::VARIANT
