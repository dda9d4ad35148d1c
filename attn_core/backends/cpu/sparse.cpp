#include "sparse.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "parallel.h"

namespace attn {
namespace {

// τ such that Σ max(z - τ, 0) = 1, of scores sorted downwards, the largest of which is 0.
double sparsemax(const std::vector<double>& z) {
  double total = 0, tau = -1;
  for (size_t k = 1; k <= z.size(); k++) {
    total += z[k - 1];
    if (1 + double(k) * z[k - 1] > total) tau = (total - 1) / double(k);
  }
  return tau;
}

// τ such that Σ max(z - τ, 0)² = 1, likewise.
double entmax15(const std::vector<double>& z) {
  double total = 0, squares = 0, tau = -1;
  for (size_t k = 1; k <= z.size(); k++) {
    total += z[k - 1];
    squares += z[k - 1] * z[k - 1];
    const double mean = total / double(k), spread = (1 - squares + total * mean) / double(k);
    const double here = mean - std::sqrt(std::max(spread, 0.0));
    if (here <= z[k - 1]) tau = here;
  }
  return tau;
}

// One row and head. Scores more than 1 (2 for entmax) below the largest get no weight.
template <class T>
void weigh(const Problem<T>& p, int64_t row, int head, std::vector<double>& sorted) {
  const bool root = p.power == ROOT;
  const Places place = p.by_query.place;
  const int64_t begin = p.by_query.pointer[row], end = p.by_query.pointer[row + 1];
  double most = -std::numeric_limits<double>::infinity();
  for (int64_t e = begin; e < end; e++) {
    const double x = p.given[place[e]][head];
    most = x > most || x != x ? x : most;
  }
  const double scale = root ? 0.5 : 1;
  sorted.clear();
  for (int64_t e = begin; e < end; e++) {
    const double z = scale * (p.given[place[e]][head] - most);
    if (z >= -1) sorted.push_back(z);
  }
  std::sort(sorted.begin(), sorted.end(), std::greater<double>());
  // Without any: all are -inf, and no weights; or the numbers are infinite or missing
  const bool none = sorted.empty() && most == -std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double tau = sorted.empty() ? nan : root ? entmax15(sorted) : sparsemax(sorted);
  for (int64_t e = begin; e < end; e++) {
    const double above = scale * (p.given[place[e]][head] - most) - tau;
    const double weight = above > 0 ? (root ? above * above : above) : above <= 0 ? 0 : nan;
    p.made[place[e]][head] = none ? T(0) : T(weight);
  }
}

}  // namespace

template <class T>
void sparse_weights(const Problem<T>& p, int threads) {
  const auto tasks = cut_rows(p.by_query.pointer, p.by_query.num, CHUNK);
  share(int64_t(tasks.size()) - 1, threads, [&](int64_t i, int) {
    std::vector<double> sorted;
    for (int64_t row = tasks[size_t(i)]; row < tasks[size_t(i) + 1]; row++) {
      for (int head = 0; head < p.heads; head++) weigh(p, row, head, sorted);
    }
  });
}

template void sparse_weights<float>(const Problem<float>&, int);
template void sparse_weights<double>(const Problem<double>&, int);

}  // namespace attn
