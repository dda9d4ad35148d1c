// The passes over the pairs of a graph; compiled once for each instruction set.
//
// A row is what a node attends to (by query) or is attended by (by key). Its pairs are visited in
// blocks whose rows stay in the cache: they are scored, their weights follow from a running
// maximum (or from the log-sum-exp, in the backward passes), and the values are summed.

#include "blocks.h"

namespace attn::ATTN_ISA {
namespace {

// The functions that suit one problem.
template <class T>
struct Chosen {
  decltype(&dots<T, 0>) dots_of_width, dots_of_value;
  decltype(&additive<T, 0, Kind::tanh>) additive_score;
  decltype(&accumulate<T, 0>) sum_of_width, sum_of_value;
  decltype(&additive_backward<T, 0, Kind::tanh>) additive_gradient;

  explicit Chosen(const Problem<T>& p) {
    with_width(p.width, [&](auto width) {
      constexpr int D = width;
      dots_of_width = dots<T, D>;
      sum_of_width = accumulate<T, D>;
      if (p.kind == Kind::tanh) {
        additive_score = additive<T, D, Kind::tanh>;
        additive_gradient = additive_backward<T, D, Kind::tanh>;
      } else {
        additive_score = additive<T, D, Kind::leaky_relu>;
        additive_gradient = additive_backward<T, D, Kind::leaky_relu>;
      }
    });
    with_width(p.value_width, [&](auto width) {
      constexpr int D = width;
      dots_of_value = dots<T, D>;
      sum_of_value = accumulate<T, D>;
    });
  }
};

// One thread's room, laid out in its scratch.
template <class T>
struct Room {
  T *scores, *weights, *slopes, *keep;  // [H, kBlock]
  T *most, *total, *scale, *mean;       // [H]
  T *own, *of_vector, *value;           // [H, D], [H, D], [H, Dv]

  Room(const Problem<T>& p, T* scratch) {
    const int64_t heads = padded(p.heads, 16);
    const auto take = [&](int64_t size) {
      T* taken = scratch;
      scratch += size;
      return taken;
    };
    for (T** at : {&scores, &weights, &slopes, &keep}) *at = take(heads * kBlock);
    for (T** at : {&most, &total, &scale, &mean}) *at = take(heads);
    own = take(int64_t{p.heads} * p.width);
    of_vector = take(int64_t{p.heads} * p.width);
    value = take(int64_t{p.heads} * p.value_width);
  }
};

// A block of the pairs of one row.
template <class T>
struct Block {
  int n;
  int64_t node[kBlock], number[kBlock], row[kBlock];
  const T *score[kBlock], *value[kBlock], *pair_key[kBlock], *pair_value[kBlock];

  // `others` are the rows, at the other ends, that enter the score; `values` those that are summed.
  Block(const Problem<T>& p, const Sorted& sorted, int64_t first, int64_t last, const T* others,
        const T* values)
      : n(last - first < kBlock ? int(last - first) : kBlock) {
    const int64_t score_size = int64_t{p.heads} * p.width;
    const int64_t value_size = int64_t{p.heads} * p.value_width;
    for (int e = 0; e < n; ++e) {
      node[e] = sorted.other[first + e];
      score[e] = others + node[e] * score_size;
      value[e] = values + node[e] * value_size;
    }
    if (sorted.number)
      for (int e = 0; e < n; ++e) {
        number[e] = sorted.number[first + e];
        row[e] = p.row ? p.row[number[e]] : number[e];
        pair_key[e] = p.pair_key ? p.pair_key + row[e] * score_size : nullptr;
        pair_value[e] = p.pair_value ? p.pair_value + row[e] * value_size : nullptr;
      }
    const int end = padded(n, kLanes<T>);
    for (int e = n; e < end; ++e) {
      score[e] = score[0];
      value[e] = value[0];
      if (sorted.number) pair_key[e] = pair_key[0], pair_value[e] = pair_value[0];
    }
  }

  // Starts to fetch the values, which are read long after their place is known.
  void prefetch(int64_t size) const {
    for (int e = 0; e < n; ++e)
      for (int64_t at = 0; at < size; at += 64 / int64_t{sizeof(T)})
        __builtin_prefetch(value[e] + at);
  }
};

template <class T>
void add_bias(T* scores, const Problem<T>& p, const Block<T>& block) {
  for (int e = 0; e < block.n; ++e)
    for (int h = 0; h < p.heads; ++h)
      scores[h * kBlock + e] += p.bias[block.row[e] * p.heads + h];
}

template <class T>
void fill(T* to, int64_t size, T with) {
  for (int64_t i = 0; i < size; ++i) to[i] = with;
}

template <class T>
constexpr T kInfinity = T(__builtin_inf());

// The running maximum and sum of one row, and its weighted values.
template <class T>
void forward_pairs(const Problem<T>& p, const Sorted& sorted, const Chosen<T>& chosen,
                   int64_t node, int64_t first, int64_t last, const Room<T>& room) {
  constexpr int N = kLanes<T>;
  const int heads = p.heads, width = p.value_width;
  const T* query = p.query ? p.query + node * heads * p.width : nullptr;
  fill(room.most, heads, -kInfinity<T>);
  fill(room.total, heads, T(0));
  fill(room.value, int64_t{heads} * width, T(0));
  for (int64_t at = first; at < last; at += kBlock) {
    const Block<T> block(p, sorted, at, last, p.key, p.value);
    block.prefetch(int64_t{heads} * width);
    T* const scores = room.scores;
    Rows<T> extra = p.pair_key ? block.pair_key : nullptr;
    if (p.kind == Kind::dot)
      chosen.dots_of_width(scores, query, block.score, extra, block.n, heads, p.width, p.constant);
    else
      chosen.additive_score(scores, query, block.score, extra, p.vector, block.n, heads, p.width,
                            p.constant);
    if (p.bias) add_bias(scores, p, block);

    const int end = padded(block.n, N);
    for (int h = 0; h < heads; ++h) {
      T* of_head = scores + h * kBlock;
      for (int e = block.n; e < end; ++e) of_head[e] = -kInfinity<T>;
      auto most = load<T, N>(of_head);
      for (int e = N; e < end; e += N) {
        const auto x = load<T, N>(of_head + e);
        most = x > most ? x : most;
      }
      const T before = room.most[h], here = largest<T, N>(most);
      const T now = here > before ? here : before;
      const T shift = now == -kInfinity<T> ? T(0) : now;
      if (now > before && before != -kInfinity<T>) {
        const T scale = exp<T, 1>(Vec<T, 1>{} + (before - shift))[0];
        room.total[h] *= scale;
        for (int d = h * width; d < (h + 1) * width; ++d) room.value[d] *= scale;
      }
      room.most[h] = now;
      auto total = Vec<T, N>{};
      for (int e = 0; e < end; e += N) {
        const auto weight = exp<T, N>(load<T, N>(of_head + e) - shift);
        store<T, N>(of_head + e, weight);
        total += weight;
      }
      room.total[h] += sum<T, N>(total);
    }
    if (p.dropout) {
      draw(room.keep, p, block.number, block.n);
      for (int h = 0; h < heads; ++h)
        for (int e = 0; e < block.n; ++e) scores[h * kBlock + e] *= room.keep[h * kBlock + e];
    }
    chosen.sum_of_value(room.value, scores, block.value, p.pair_value ? block.pair_value : nullptr,
                        block.n, heads, width);
  }
}

// From maximum and sum of each head to the output and the log-sum-exp.
template <class T>
void finish(const Problem<T>& p, const T* most, T* total, const T* value, T* output,
            T* log_sum_exp) {
  constexpr int N = kLanes<T>;
  const int width = p.value_width;
  for (int h = 0; h < p.heads; ++h) {
    const T inverse = total[h] == T(0) ? T(0) : T(1) / total[h];
    for (int d = h * width; d < (h + 1) * width; ++d) output[d] = value[d] * inverse;
  }
  for (int h = 0; h < p.heads; h += N)
    store<T, N>(total + h, log<T, N>(load<T, N>(total + h)));
  for (int h = 0; h < p.heads; ++h) log_sum_exp[h] = most[h] + total[h];
}

template <class T>
void forward(const Problem<T>& p, const Sorted& sorted, const Task& task, const Forward<T>& to,
             T* scratch) {
  const Chosen<T> chosen(p);
  const Room<T> room(p, scratch);
  const int64_t heads = p.heads, size = heads * p.value_width;
  if (task.part >= 0) {
    forward_pairs(p, sorted, chosen, task.begin, task.first, task.last, room);
    for (int64_t i = 0; i < size; ++i) to.part_output[task.part * size + i] = room.value[i];
    for (int64_t h = 0; h < heads; ++h) {
      to.part_max[task.part * heads + h] = room.most[h];
      to.part_sum[task.part * heads + h] = room.total[h];
    }
    return;
  }
  for (int64_t node = task.begin; node < task.end; ++node) {
    forward_pairs(p, sorted, chosen, node, sorted.pointer[node], sorted.pointer[node + 1], room);
    finish(p, room.most, room.total, room.value, to.output + node * size,
           to.log_sum_exp + node * heads);
  }
}

// The weights of a block from its scores: exp(score − log-sum-exp).
template <class T>
void recompute(T* scores, const T* shift, int each, int n, int heads) {
  constexpr int N = kLanes<T>;
  for (int h = 0; h < heads; ++h)
    for (int e = 0; e < n; e += N) {
      T* at = scores + h * kBlock + e;
      const auto taken = each ? load<T, N>(shift + h * kBlock + e) : Vec<T, N>{} + shift[h];
      store<T, N>(at, exp<T, N>(load<T, N>(at) - taken));
    }
}

// The gradients of the scores, in room.slopes, and the weights after dropout, in room.weights.
// `of_weight` holds grad_output · value of each pair, `mean` what softmax takes off.
template <class T>
void through_softmax(const Problem<T>& p, const Block<T>& block, const Room<T>& room,
                     const T* mean, int each) {
  if (p.dropout) draw(room.keep, p, block.number, block.n);
  for (int h = 0; h < p.heads; ++h)
    for (int e = 0; e < block.n; ++e) {
      const int at = h * kBlock + e;
      const T weight = room.scores[at], keep = p.dropout ? room.keep[at] : T(1);
      room.slopes[at] = weight * (keep * room.slopes[at] - (each ? mean[at] : mean[h]));
      room.weights[at] = weight * keep;
    }
}

template <class T>
void by_query_pairs(const Problem<T>& p, const Sorted& sorted, const Chosen<T>& chosen,
                    int64_t node, int64_t first, int64_t last, const Backward<T>& to, T* vector,
                    const Room<T>& room) {
  const int heads = p.heads;
  const int64_t size = int64_t{heads} * p.width, value_size = int64_t{heads} * p.value_width;
  const T* query = p.query ? p.query + node * size : nullptr;
  const T* grad = to.grad_output + node * value_size;
  fill(room.own, size, T(0));
  for (int64_t at = first; at < last; at += kBlock) {
    const Block<T> block(p, sorted, at, last, p.key, p.value);
    Rows<T> extra = p.pair_key ? block.pair_key : nullptr;
    Rows<T> more = p.pair_value ? block.pair_value : nullptr;
    block.prefetch(value_size);
    if (p.kind == Kind::dot)
      chosen.dots_of_width(room.scores, query, block.score, extra, block.n, heads, p.width,
                           p.constant);
    else
      chosen.additive_score(room.scores, query, block.score, extra, p.vector, block.n, heads,
                            p.width, p.constant);
    if (p.bias) add_bias(room.scores, p, block);
    recompute(room.scores, room.most, 0, block.n, heads);
    chosen.dots_of_value(room.slopes, grad, block.value, more, block.n, heads, p.value_width, T(1));
    through_softmax(p, block, room, room.mean, 0);

    T* rows[kBlock];
    const auto place = [&](T* of, int64_t row_size) {
      for (int e = 0; e < block.n; ++e) rows[e] = of + block.row[e] * row_size;
      return rows;
    };
    if (to.bias)
      for (int e = 0; e < block.n; ++e)
        for (int h = 0; h < heads; ++h)
          to.bias[block.row[e] * heads + h] = room.slopes[h * kBlock + e];
    if (to.pair_value)
      outer(place(to.pair_value, value_size), room.weights, grad, block.n, heads, p.value_width);
    if (p.kind != Kind::dot) {
      T* const* of_pair = to.pair_key ? place(to.pair_key, size) : nullptr;
      if (to.query || vector || of_pair)
        chosen.additive_gradient(room.own, vector, of_pair, room.slopes, query, block.score, extra,
                                 p.vector, block.n, heads, p.width, p.constant);
      continue;
    }
    for (int h = 0; h < heads; ++h)
      for (int e = 0; e < block.n; ++e) room.slopes[h * kBlock + e] *= p.constant;
    if (to.query)
      chosen.sum_of_width(room.own, room.slopes, block.score, extra, block.n, heads, p.width);
    if (to.pair_key)
      outer(place(to.pair_key, size), room.slopes, query, block.n, heads, p.width);
  }
}

// What softmax takes off each gradient of a row, and the log-sum-exp, 0 where there is no pair.
template <class T>
void prepare_row(const Problem<T>& p, const Backward<T>& to, int64_t node, const Room<T>& room) {
  const int width = p.value_width;
  for (int h = 0; h < p.heads; ++h) {
    const int64_t of_head = node * p.heads + h;
    const T *grad = to.grad_output + of_head * width, *output = to.output + of_head * width;
    T mean = 0;
    for (int d = 0; d < width; ++d) mean += grad[d] * output[d];
    if (to.grad_log_sum_exp) mean -= to.grad_log_sum_exp[of_head];
    const T log_sum_exp = to.log_sum_exp[of_head];
    room.mean[h] = mean;
    room.most[h] = log_sum_exp == -kInfinity<T> ? T(0) : log_sum_exp;
  }
}

// Copies a gradient of an additive score's query or key to its place, times the vector.
template <class T>
void put(T* to, const T* from, const Problem<T>& p, int64_t size) {
  const bool scaled = p.kind != Kind::dot && p.vector;
  for (int64_t i = 0; i < size; ++i) to[i] = scaled ? from[i] * p.vector[i] : from[i];
}

template <class T>
void by_query(const Problem<T>& p, const Sorted& sorted, const Task& task, const Backward<T>& to,
              T* vector, T* scratch) {
  const Chosen<T> chosen(p);
  const Room<T> room(p, scratch);
  const int64_t size = int64_t{p.heads} * p.width;
  const bool needed = to.query || vector || to.bias || to.pair_key || to.pair_value;
  for (int64_t node = task.begin; node < task.end; ++node) {
    const bool whole = task.part < 0;
    const int64_t first = whole ? sorted.pointer[node] : task.first;
    const int64_t last = whole ? sorted.pointer[node + 1] : task.last;
    prepare_row(p, to, node, room);
    if (whole || first == sorted.pointer[node])  // else another task does
      for (int h = 0; h < p.heads; ++h) to.mean[node * p.heads + h] = room.mean[h];
    if (!needed) continue;
    by_query_pairs(p, sorted, chosen, node, first, last, to, vector, room);
    if (to.query) put(whole ? to.query + node * size : to.part_own + task.part * size, room.own, p, size);
  }
}

template <class T>
void by_key_pairs(const Problem<T>& p, const Sorted& sorted, const Chosen<T>& chosen, int64_t node,
                  int64_t first, int64_t last, const Backward<T>& to, const Room<T>& room) {
  const int heads = p.heads;
  const int64_t size = int64_t{heads} * p.width, value_size = int64_t{heads} * p.value_width;
  const T *key = p.key + node * size, *value = p.value + node * value_size;
  fill(room.own, size, T(0));
  fill(room.value, value_size, T(0));
  for (int64_t at = first; at < last; at += kBlock) {
    const Block<T> block(p, sorted, at, last, p.query ? p.query : p.key, to.grad_output);
    Rows<T> extra = p.pair_key ? block.pair_key : nullptr;
    block.prefetch(value_size);
    if (p.kind == Kind::dot) {
      chosen.dots_of_width(room.scores, key, block.score, nullptr, block.n, heads, p.width,
                           p.constant);
      if (extra)
        add_pair_dots(room.scores, block.score, extra, block.n, heads, p.width, p.constant);
    } else if (p.query) {
      chosen.additive_score(room.scores, key, block.score, extra, p.vector, block.n, heads, p.width,
                            p.constant);
    } else {  // a score of the key alone
      const T* same[kBlock];
      for (int e = 0; e < kBlock; ++e) same[e] = key;
      chosen.additive_score(room.scores, nullptr, same, extra, p.vector, block.n, heads, p.width,
                            p.constant);
    }
    if (p.bias) add_bias(room.scores, p, block);
    // Log-sum-exp and mean of each pair's own query
    T *shift = room.weights, *mean = room.keep;
    for (int e = 0; e < block.n; ++e) {
      const T* of_query = to.log_sum_exp + block.node[e] * heads;
      for (int h = 0; h < heads; ++h)
        shift[h * kBlock + e] = of_query[h] == -kInfinity<T> ? T(0) : of_query[h];
    }
    recompute(room.scores, shift, 1, block.n, heads);
    chosen.dots_of_value(room.slopes, value, block.value, nullptr, block.n, heads, p.value_width,
                         T(1));
    if (p.pair_value)
      add_pair_dots(room.slopes, block.value, Rows<T>(block.pair_value), block.n, heads,
                    p.value_width, T(1));
    if (p.dropout) {
      draw(room.keep, p, block.number, block.n);
      for (int h = 0; h < heads; ++h)
        for (int e = 0; e < block.n; ++e) {
          const int i = h * kBlock + e;
          room.weights[i] = room.scores[i] * room.keep[i];
          room.slopes[i] *= room.keep[i];
        }
    } else {
      for (int h = 0; h < heads; ++h)
        for (int e = 0; e < block.n; ++e) room.weights[h * kBlock + e] = room.scores[h * kBlock + e];
    }
    for (int e = 0; e < block.n; ++e) {
      const T* of_query = to.mean + block.node[e] * heads;
      for (int h = 0; h < heads; ++h) mean[h * kBlock + e] = of_query[h];
    }
    for (int h = 0; h < heads; ++h)
      for (int e = 0; e < block.n; ++e) {
        const int i = h * kBlock + e;
        room.slopes[i] = room.scores[i] * (room.slopes[i] - mean[i]);
        if (p.kind == Kind::dot) room.slopes[i] *= p.constant;
      }
    if (to.value)
      chosen.sum_of_value(room.value, room.weights, block.value, nullptr, block.n, heads,
                          p.value_width);
    if (!to.key) continue;
    if (p.kind == Kind::dot) {
      chosen.sum_of_width(room.own, room.slopes, block.score, nullptr, block.n, heads, p.width);
    } else if (p.query) {
      chosen.additive_gradient(room.own, nullptr, nullptr, room.slopes, key, block.score, extra,
                               p.vector, block.n, heads, p.width, p.constant);
    } else {
      const T* same[kBlock];
      for (int e = 0; e < kBlock; ++e) same[e] = key;
      chosen.additive_gradient(room.own, nullptr, nullptr, room.slopes, nullptr, same, extra,
                               p.vector, block.n, heads, p.width, p.constant);
    }
  }
}

template <class T>
void by_key(const Problem<T>& p, const Sorted& sorted, const Task& task, const Backward<T>& to,
            T* scratch) {
  const Chosen<T> chosen(p);
  const Room<T> room(p, scratch);
  const int64_t size = int64_t{p.heads} * p.width, value_size = int64_t{p.heads} * p.value_width;
  for (int64_t node = task.begin; node < task.end; ++node) {
    const bool whole = task.part < 0;
    by_key_pairs(p, sorted, chosen, node, whole ? sorted.pointer[node] : task.first,
                 whole ? sorted.pointer[node + 1] : task.last, to, room);
    if (to.key) put(whole ? to.key + node * size : to.part_own + task.part * size, room.own, p, size);
    if (to.value) {
      T* place = whole ? to.value + node * value_size : to.part_value + task.part * value_size;
      for (int64_t i = 0; i < value_size; ++i) place[i] = room.value[i];
    }
  }
}

}  // namespace

extern const Kernels<float> of_float{forward<float>, by_query<float>, by_key<float>};
extern const Kernels<double> of_double{forward<double>, by_query<double>, by_key<double>};

}  // namespace attn::ATTN_ISA
