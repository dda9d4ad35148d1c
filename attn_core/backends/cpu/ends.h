// GAT's scores of nodes: of the channels of each head, two products with a vector.
#pragma once
#include "problem.h"
#include "simd.h"

namespace attn::VARIANT {

template <class T, int W>
INLINE void ends_in(const Ends<T>& p, int64_t begin, int64_t end) {
  using V = Vec<T, W>;
  const int64_t size = p.heads * p.width;
  for (int64_t node = begin; node < end; node++) {
    for (int64_t first = 0; first < p.heads; first += 4) {
      const int64_t count = p.heads - first < 4 ? p.heads - first : 4;
      V query[4] = {}, key[4] = {};
      for (int64_t h = 0; h < count; h++) {
        for (int64_t c = (first + h) * p.width; c < (first + h + 1) * p.width; c += W) {
          const V x = load<T, W>(p.nodes + node * size + c);
          query[h] += x * load<T, W>(p.of_query + c);
          key[h] += x * load<T, W>(p.of_key + c);
        }
      }
      const Vec<T, 4> queries = sums<T, W>(query[0], query[1], query[2], query[3]);
      const Vec<T, 4> keys = sums<T, W>(key[0], key[1], key[2], key[3]);
      for (int64_t h = 0; h < count; h++) {
        p.queries[node * p.heads + first + h] = queries[h];
        p.keys[node * p.heads + first + h] = keys[h];
      }
    }
  }
}

template <class T>
void ends(const Ends<T>& p, int64_t begin, int64_t end) {
  p.width % 8 ? ends_in<T, 4>(p, begin, end) : ends_in<T, 8>(p, begin, end);
}

template <class T, int W>
INLINE void ends_backward_in(const Ends<T>& p, int64_t begin, int64_t end, T* of_vectors) {
  const int64_t size = p.heads * p.width;
  for (int64_t node = begin; node < end; node++) {
    for (int64_t h = 0; h < p.heads; h++) {
      const T query = p.queries[node * p.heads + h], key = p.keys[node * p.heads + h];
      for (int64_t c = h * p.width; c < (h + 1) * p.width; c += W) {
        const auto x = load<T, W>(p.nodes + node * size + c);
        T* grad = p.grad_nodes + node * size + c;
        store<T, W>(grad, load<T, W>(grad) + query * load<T, W>(p.of_query + c) +
                              key * load<T, W>(p.of_key + c));
        store<T, W>(of_vectors + c, load<T, W>(of_vectors + c) + query * x);
        store<T, W>(of_vectors + size + c, load<T, W>(of_vectors + size + c) + key * x);
      }
    }
  }
}

template <class T>
void ends_backward(const Ends<T>& p, int64_t begin, int64_t end, T* of_vectors) {
  p.width % 8 ? ends_backward_in<T, 4>(p, begin, end, of_vectors)
              : ends_backward_in<T, 8>(p, begin, end, of_vectors);
}

}  // namespace attn::VARIANT
