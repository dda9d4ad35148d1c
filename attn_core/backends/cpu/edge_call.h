// Attention over edges as Python asks for it: every array is checked, whatever the normaliser.
#pragma once
#include "arrays.h"
#include "dropout.h"
#include "memory.h"

namespace arrays {

inline bool is_probability(double p) {
  if (!(p >= 0 && p <= 1)) refuse("dropout", "is no probability");
  return true;
}

template <class T>
struct EdgeCall {
  attn::Problem<T> problem;
  int64_t num_queries = 0, num_keys = 0, pairs = 0, num_rows = 0;
  bool has_pair_key, has_pair_value;

  template <class A>
  EdgeCall(const A& query, const A& key, const A& value,
       const Maybe<const T>& vector, const Maybe<const T>& bias, const Maybe<const T>& pair_key,
       const Maybe<const T>& pair_value, const Index& pointer, const Column& other,
       const Places& place, const std::optional<Index>& pair_id,
       int kind, double constant, double dropout, int64_t seed, int64_t per_pair, bool backward)
      : has_pair_key(pair_key), has_pair_value(pair_value) {
    if (key.ndim() != 3 || value.ndim() != 3 || query.ndim() != 3) refuse("key", "is not [N, H, D]");
    const int64_t heads = key.shape(1), width = key.shape(2), value_width = value.shape(2);
    num_queries = query.shape(0);
    num_keys = key.shape(0);
    pairs = other.size();
    num_rows = per_pair;
    if (heads < 1 || heads > (1 << 16) || width > (1 << 20) || value_width > (1 << 20)) {
      refuse("key", "has no heads or too many channels");
    }
    if ((width % 4 && !(width == 1 && kind != attn::DOT)) || value_width % 4 || width < 1 ||
        value_width < 1) {
      refuse("key", "or value has a width that is no multiple of 4");
    }
    if (kind < attn::DOT || kind > attn::TANH) refuse("kind", "is not known");
    auto& p = problem;
    p.kind = attn::Kind(kind);
    p.scale = p.slope = T(constant);
    p.heads = int(heads);
    p.lanes = attn::lanes_of(heads);
    p.width = int(width);
    p.value_width = int(value_width);
    p.query = any_rows<const T>("query", query, num_queries, heads, width);
    p.key = any_rows<const T>("key", key, num_keys, heads, width);
    p.value = any_rows<const T>("value", value, num_keys, heads, value_width);
    if (kind != attn::DOT) {
      if (!vector) refuse("vector", "is missing");
      p.vector = packed<const T>("vector", *vector, heads, width);
    }
    p.bias = rows<const T>("bias", bias, num_rows, heads, 0, true);
    p.pair_key = rows<const T>("pair_key", pair_key, num_rows, heads, width);
    p.pair_value = rows<const T>("pair_value", pair_value, num_rows, heads, value_width);
    p.drops = is_probability(dropout) && dropout > 0;
    const bool reads_place = backward || p.drops || p.bias || p.pair_key || p.pair_value;
    if (num_rows < pairs) refuse("num_rows", "are fewer rows than there are pairs");
    p.by_query =
        graph("by_query", pointer, other, place, num_queries, num_keys, num_rows, reads_place);
    if (pair_id) {
      if (int64_t(pair_id->size()) != num_rows) refuse("pair_id", "has another length than the rows");
      p.pair_id = pair_id->data();
    }
    const bool all = has_pair_key || has_pair_value;
    const bool full = p.query.stored == attn::FULL && p.key.stored == attn::FULL;
    if ((p.numbers() && !full) || (all && !(full && p.value.stored == attn::FULL))) {
      refuse("key", "or others are kept in 16 bits, which these kernels do not read");
    }
    p.far = is_far_bytes((num_queries + num_keys) * heads *
                         (width * p.key.bytes() + value_width * p.value.bytes()));
    if (p.drops) p.dropout = attn::dropout_of(dropout, seed);
  }

  // The gradients that are asked for, with room in large pages; returns where that of the vector goes.
  template <class A>
  T* wants(const A& grad_query, const A& grad_key, const A& grad_value,
           const Maybe<T>& grad_vector, const Maybe<T>& grad_bias, const Maybe<T>& grad_pair_key,
           const Maybe<T>& grad_pair_value) {
    auto& p = problem;
    const int64_t nq = num_queries, nk = num_keys;
    // Their kernels read rows that are not in 16 bits
    if (grad_pair_key && !has_pair_key) refuse("grad_pair_key", "is asked for, but not pair_key given");
    if (grad_pair_value && !has_pair_value) {
      refuse("grad_pair_value", "is asked for, but not pair_value given");
    }
    const auto large = [](const auto& result) {
      if (result) attn::use_large_pages(result->data(), int64_t(result->nbytes()));
    };
    for (const auto* result : {&grad_query, &grad_key, &grad_value}) large(*result);
    for (const auto* result : {&grad_pair_key, &grad_pair_value}) large(*result);
    p.grad_query = any_rows<T>("grad_query", grad_query, nq, p.heads, p.width);
    p.grad_key = any_rows<T>("grad_key", grad_key, nk, p.heads, p.width);
    p.grad_value = any_rows<T>("grad_value", grad_value, nk, p.heads, p.value_width);
    if (p.numbers() && (p.grad_query.stored != attn::FULL || p.grad_key.stored != attn::FULL)) {
      refuse("grad_query", "or grad_key is kept in 16 bits, which these kernels do not write");
    }
    p.grad_bias = rows<T>("grad_bias", grad_bias, num_rows, p.heads, 0, true);
    p.grad_pair_key = rows<T>("grad_pair_key", grad_pair_key, num_rows, p.heads, p.width);
    p.grad_pair_value = rows<T>("grad_pair_value", grad_pair_value, num_rows, p.heads, p.value_width);
    T* of_vector = nullptr;
    if (grad_vector) {
      if (!p.vector) refuse("grad_vector", "is asked for, but there is no vector");
      of_vector = packed<T>("grad_vector", *grad_vector, p.heads, p.width);
      p.need_vector = true;
    }
    return of_vector;
  }

  // The pairs by key, where a pass goes by them.
  void turned(const Index& pointer, const Column& other, const Places& place) {
    problem.by_key = graph("by_key", pointer, other, place, num_keys, num_queries, num_rows);
    if (int64_t(other.size()) != pairs) refuse("by_key", "has another number of pairs");
  }
};

// α of α-entmax, 1 for softmax, and the power that goes with it.
template <class T>
void set_alpha(attn::Problem<T>& p, double alpha) {
  if (!(alpha >= 1 && alpha <= 2)) refuse("alpha", "is not within 1 and 2");
  p.alpha = alpha;
  p.power = attn::power_for(alpha);
}

// Numbers [E, H] of pairs that are sorted by row.
template <class T>
attn::Problem<T> segments(const Array<const T>& given, const Index& pointer, const Places& place) {
  if (given.ndim() != 2 || pointer.size() < 1) refuse("given", "is not [E, H]");
  if (given.shape(1) < 1 || given.shape(1) > (1 << 20)) {
    refuse("given", "has no columns or too many");
  }
  attn::Problem<T> p;
  p.heads = int(given.shape(1));
  p.lanes = attn::lanes_of(p.heads);
  p.width = p.value_width = 0;
  p.by_query = graph("pairs", pointer, place, int64_t(pointer.size()) - 1, int64_t(place.size()));
  p.given = rows<const T>("given", given, place.size(), p.heads, 0, true);
  return p;
}

}  // namespace arrays
