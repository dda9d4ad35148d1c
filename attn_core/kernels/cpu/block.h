// A block of at most 32 neighbouring pairs of one row: where its vectors lie, what dropout keeps.
#pragma once
#include "score.h"

namespace attn::VARIANT {

constexpr int AHEAD = 64;  // pairs between a row's use and its being asked for

template <class T>
struct Scratch;

// The functions that suit the widths and the score.
template <class T>
struct Functions {
  using Next = const T* const*;
  void (*score)(const Problem<T>&, const T* const*, Next, int, const T*, int, T*);
  void (*dot)(const Problem<T>&, const T* const*, Next, int, const T*, int, T*);
  void (*gather_key)(const Problem<T>&, const T* const*, Next, int, const T*, const T*, int, T*);
  void (*gather_value)(const Problem<T>&, const T* const*, Next, int, const T*, const T*, int, T*);
  void (*score_gradient)(const Problem<T>&, const T* const*, Next, int, const T*, const T*, T*, T*);
  void (*pair_gradient)(const Problem<T>&, const T*, const T*, const T*, T*);
  // For rows of single numbers
  void (*score_numbers)(const Problem<T>&, const T* const*, int, const T*, const T*, T*, T*);
  void (*number_gradient)(const Problem<T>&, int, const T*, const T*, T*, T*);
  void (*normalise)(const Problem<T>&, int, Scratch<T>&, bool);
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
  if constexpr (K != DOT) {
    f.score_gradient = with_width<T>(p.width, ChooseGradient<T, K>());
    if (p.width == 1) {
      f.score_numbers = &score_numbers<T, K>;
      f.number_gradient = &number_gradient<T, K>;
      return;
    }
  }
  f.score = with_width<T>(p.width, ChooseScore<T, K>());
  f.pair_gradient = with_width<T>(p.width, ChoosePair<T, K>());
}

template <class T>
Functions<T> choose(const Problem<T>& p) {
  Functions<T> f = {};
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

// A thread's own memory. Numbers of a block are [pair, lane]; those of a row are repeated.
template <class T>
struct Scratch {
  T *logits, *weights, *grads, *keep, *x, *means;              // of a block
  T *largest, *total, *scale, *mean, *fixed, *vector, *ones;  // of a row
  T *row_key, *made_key, *made_value;

  Scratch(const Problem<T>& p, T* at) {
    const int64_t repeated = period(p), block = int64_t(BLOCK) * repeated;
    auto take = [&at](int64_t size) {
      T* start = at;
      for (; at < start + size; at++) *at = 0;
      return start;
    };
    for (T** one : {&logits, &weights, &grads, &keep, &x, &means}) *one = take(block);
    for (T** one : {&largest, &total, &scale, &mean, &fixed, &vector, &ones}) {
      *one = take(repeated);
    }
    for (int64_t i = 0; i < repeated; i++) ones[i] = 1;
    const int64_t size = int64_t(p.heads) * p.width;
    row_key = take(size);
    made_key = at;
    made_value = at + BLOCK * size;
    if (p.vector && p.width == 1) repeat(p, p.vector, vector);
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

// The rows of the pairs that come AHEAD later.
template <class T>
INLINE void find_next(const Rows<const T>& tokens, const Graph& graph, int64_t begin, int n,
                      const T** next) {
  const int64_t last = graph.pointer[graph.num] - 1;
  for (int e = 0; e < (n + 3) / 4 * 4; e++) {
    const int64_t at = begin + e + AHEAD;
    next[e] = tokens[graph.other[at < last ? at : last]];
  }
}
// The same for rows of single numbers and the like, asked for at once.
template <class T>
INLINE void prefetch_next(const Rows<const T>& tokens, const Graph& graph, int64_t begin, int n,
                          int64_t size) {
  const T* next[BLOCK];
  find_next(tokens, graph, begin, n, next);
  for (int e = 0; e < n; e++) {
    for (int64_t c = 0; c < size; c += 64 / int(sizeof(T))) __builtin_prefetch(next[e] + c);
  }
}

// What numbers of a block there are, up to whole vectors: those behind the last pair become x.
template <class T>
INLINE int fill_rest(const Problem<T>& p, int n, T x, T* numbers) {
  const int end = n * p.lanes;
  int to = end;
  for (; to % WIDEST<T>; to++) numbers[to] = x;
  return to;
}

// Makes logits of products scaled ones, and adds the bias.
template <class T>
INLINE void add_bias(const Problem<T>& p, const Graph& graph, int64_t begin, int n, T* logits) {
  if (p.kind == DOT) {
    for (int i = 0; i < n * p.lanes; i++) logits[i] *= p.scale;
  }
  if (!p.bias) return;
  for (int e = 0; e < n; e++) {
    const T* bias = p.bias[p.row(graph.place[begin + e])];
    for (int h = 0; h < p.heads; h++) logits[e * p.lanes + h] += bias[h];
  }
}

// What dropout multiplies each weight with.
template <class T>
INLINE void draw(const Problem<T>& p, const Graph& graph, int64_t begin, int n, T* keep) {
  uint32_t state[BLOCK] = {}, high[BLOCK] = {};
  for (int e = 0; e < n; e++) {
    const uint64_t id = p.id(graph.place[begin + e]);
    state[e] = uint32_t(id);
    high[e] = uint32_t(id >> 32);
  }
  for (int e = 0; e < n; e++) state[e] = absorb(absorb(p.seed_state, state[e]), high[e]);
  if (p.lanes < 8) {
    for (int h = 0; h < p.heads; h++) {
      for (int e = 0; e < n; e++) {
        keep[e * p.lanes + h] = absorb(state[e], uint32_t(h)) >= p.threshold ? p.keep_scale : T(0);
      }
    }
    return;
  }
  for (int e = 0; e < n; e++) {
    for (int h = 0; h < p.lanes; h += 8) {
      T* to = keep + e * p.lanes + h;
      for (int u = 0; u < 8; u++) {
        to[u] = absorb(state[e], uint32_t(h + u)) >= p.threshold ? p.keep_scale : T(0);
      }
    }
  }
}

}  // namespace attn::VARIANT
