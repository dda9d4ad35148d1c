// A block of at most 32 neighbouring pairs of one row: where its vectors lie, what dropout keeps.
#pragma once
#include "score.h"

namespace attn::VARIANT {

// The functions that suit the widths and the score.
template <class T>
struct Functions {
  void (*score)(const Problem<T>&, const T* const*, int, const T*, int, T*);
  void (*dot)(const Problem<T>&, const T* const*, int, const T*, int, T*);
  void (*gather_key)(const T* const*, int, const T*, const T*, int, int, T*);
  void (*gather_value)(const T* const*, int, const T*, const T*, int, int, T*);
  void (*score_gradient)(const Problem<T>&, const T* const*, int, const T*, const T*, T*, T*);
  void (*pair_gradient)(const Problem<T>&, const T*, const T*, const T*, T*);
};

// Calls f with the vector length and the width, if there is special code for it, as constants.
template <class T, class F>
auto with_width(int width, F f) {
  constexpr int M = WIDEST<T>, M8 = M < 8 ? M : 8;
  switch (width) {
    case 4: return f.template operator()<4, 4>();
    case 8: return f.template operator()<M8, 8>();
    case 16: return f.template operator()<M, 16>();
    case 32: return f.template operator()<M, 32>();
  }
  if (width % M == 0) return f.template operator()<M, 0>();
  if (width % M8 == 0) return f.template operator()<M8, 0>();
  return f.template operator()<4, 0>();
}

template <class T, Kind K>
struct ChooseScore {
  template <int W, int D>
  auto operator()() const { return &score<T, W, D, K>; }
};
template <class T>
struct ChooseGather {
  template <int W, int D>
  auto operator()() const { return &gather<T, W, D>; }
};
template <class T, Kind K>
struct ChooseGradient {
  template <int W, int D>
  auto operator()() const { return &score_gradient<T, W, D, K>; }
};
template <class T, Kind K>
struct ChoosePair {
  template <int W, int D>
  auto operator()() const { return &pair_gradient<T, W, K>; }
};

template <class T, Kind K>
void choose_score(const Problem<T>& p, Functions<T>& f) {
  f.score_gradient = nullptr;
  if constexpr (K != DOT) {
    if (p.width == 1) {
      f.score = &score_numbers<T, K>;
      f.score_gradient = &number_gradient<T, K>;
      f.pair_gradient = &number_pair_gradient<T, K>;
      return;
    }
    f.score_gradient = with_width<T>(p.width, ChooseGradient<T, K>());
  }
  f.score = with_width<T>(p.width, ChooseScore<T, K>());
  f.pair_gradient = with_width<T>(p.width, ChoosePair<T, K>());
}

template <class T>
Functions<T> choose(const Problem<T>& p) {
  Functions<T> f;
  switch (p.kind) {
    case DOT: choose_score<T, DOT>(p, f); break;
    case LEAKY_RELU: choose_score<T, LEAKY_RELU>(p, f); break;
    case TANH: choose_score<T, TANH>(p, f); break;
  }
  f.dot = with_width<T>(p.value_width, ChooseScore<T, DOT>());
  f.gather_key = with_width<T>(p.width, ChooseGather<T>());
  f.gather_value = with_width<T>(p.value_width, ChooseGather<T>());
  return f;
}

// A thread's own memory.
template <class T>
struct Scratch {
  T *logits, *weights, *grads, *keep, *made_key, *made_value, *largest, *total, *scale, *mean;
  T *row_key, *row_value, *pair;

  Scratch(const Problem<T>& p, T* at) {
    const int64_t h = (p.heads + 3) / 4 * 4, block = h * BLOCK;
    auto take = [&at](int64_t size) {
      T* start = at;
      at += size;
      return start;
    };
    logits = take(block);
    weights = take(block);
    grads = take(block);
    keep = take(block);
    made_key = take(block * p.width);
    made_value = take(block * p.value_width);
    largest = take(h);
    total = take(h);
    scale = take(h);
    mean = take(h);
    row_key = take(h * p.width);
    row_value = take(h * p.value_width);
    pair = take(h * p.width);
  }
};

// The rows of a block's other ends, up to the next multiple of 4; with `pair`, plus those of pairs.
template <class T>
INLINE void find_rows(const Rows<const T>& tokens, const Rows<const T>& pair, const Problem<T>& p,
                      const Graph& graph, int64_t begin, int n, int64_t size, T* made,
                      const T** rows) {
  for (int e = 0; e < n; e++) rows[e] = tokens[graph.other[begin + e]];
  if (pair) {
    for (int e = 0; e < n; e++) {
      const T* added = pair[p.row(graph.place[begin + e])];
      T* at = made + e * size;
      for (int64_t c = 0; c < size; c++) at[c] = rows[e][c] + added[c];
      rows[e] = at;
    }
  }
  for (int e = n; e % 4; e++) rows[e] = rows[0];
}

// Ask for the rows of the block that follows.
template <class T>
INLINE void prefetch(const Rows<const T>& tokens, const Graph& graph, int64_t begin, int64_t n,
                     int64_t size) {
  const int64_t last = graph.pointer[graph.num];
  const int64_t end = begin + n < last ? begin + n : last;
  for (int64_t e = begin; e < end; e++) {
    const char* row = reinterpret_cast<const char*>(tokens[graph.other[e]]);
    for (int64_t b = 0; b < size * int64_t(sizeof(T)); b += 64) __builtin_prefetch(row + b);
  }
}

template <class T>
INLINE void add_bias(const Problem<T>& p, int64_t begin, int n, T* logits) {
  if (p.kind == DOT) {
    for (int h = 0; h < p.heads; h++) {
      for (int e = 0; e < n; e++) logits[h * BLOCK + e] *= p.scale;
    }
  }
  if (!p.bias) return;
  for (int e = 0; e < n; e++) {
    const T* bias = p.bias[p.row(p.by_query.place[begin + e])];
    for (int h = 0; h < p.heads; h++) logits[h * BLOCK + e] += bias[h];
  }
}

// What dropout multiplies each weight with.
template <class T>
INLINE void draw(const Problem<T>& p, int64_t begin, int n, T* keep) {
  uint32_t state[BLOCK] = {}, high[BLOCK] = {};
  for (int e = 0; e < n; e++) {
    const uint64_t id = p.id(p.by_query.place[begin + e]);
    state[e] = uint32_t(id);
    high[e] = uint32_t(id >> 32);
  }
  for (int e = 0; e < BLOCK; e++) state[e] = absorb(absorb(p.seed_state, state[e]), high[e]);
  for (int h = 0; h < p.heads; h++) {
    for (int e = 0; e < BLOCK; e++) {
      keep[h * BLOCK + e] = absorb(state[e], uint32_t(h)) >= p.threshold ? p.keep_scale : T(0);
    }
  }
}

}  // namespace attn::VARIANT
