#include "sample.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "dropout.h"
#include "parallel.h"

namespace attn {
namespace {

constexpr int64_t AHEAD = 16;  // how many reads are under way at one time

inline bool is_one_of(int64_t node, int64_t num) { return uint64_t(node) < uint64_t(num); }

// Where the pairs of a node begin, and how many it has; false if there is no such node or pair.
inline bool look_up(const Unchecked& pairs, int64_t node, int64_t& first, int64_t& degree) {
  if (!is_one_of(node, pairs.graph.num)) return false;
  first = pairs.graph.pointer[node];
  degree = pairs.graph.pointer[node + 1] - first;
  return first >= 0 && degree >= 0 && degree <= pairs.count - first;
}

// Different numbers below `size`, each subset equally likely, ascending. Floyd: for each of the last
// numbers, draw one up to it; if it is there already, take that last number itself.
class Subset {
 public:
  void draw(int64_t size, int64_t most, uint32_t state, int64_t* chosen) {
    const bool few = most <= 32;  // then to look at all of them is quick, else a table tells
    if (!few) clear_table(most);
    for (int64_t i = 0; i < most; i++) {
      const int64_t last = size - most + i;
      const uint64_t bits = hash_absorb(state, uint32_t(i));
      const auto drawn = int64_t(bits * uint64_t(last + 1) >> 32);
      const bool again = few ? is_among(chosen, i, drawn) : !add(drawn);
      if (again && !few) add(last);
      chosen[i] = again ? last : drawn;
    }
    std::sort(chosen, chosen + most);
  }

 private:
  std::vector<int64_t> table;  // of open addresses, at most half full

  static bool is_among(const int64_t* chosen, int64_t count, int64_t one) {
    bool found = false;
    for (int64_t i = 0; i < count; i++) found |= chosen[i] == one;
    return found;
  }

  void clear_table(int64_t most) {
    size_t room = 128;
    while (room < size_t(2 * most)) room *= 2;
    table.assign(room, -1);
  }

  // Whether a number was not there yet.
  bool add(int64_t one) {
    const size_t mask = table.size() - 1;
    size_t at = hash_mix(uint32_t(one)) & mask;
    while (table[at] >= 0 && table[at] != one) at = (at + 1) & mask;
    if (table[at] == one) return false;
    table[at] = one;
    return true;
  }
};

// Ascending; numbers have at most 31 bits.
void sort_nodes(std::vector<int32_t>& nodes) {
  constexpr int BITS = 11, RANGE = 1 << BITS;
  if (nodes.size() < RANGE) return std::sort(nodes.begin(), nodes.end());
  const int32_t largest = *std::max_element(nodes.begin(), nodes.end());
  std::vector<int32_t> other(nodes.size());
  for (int shift = 0; shift < 31 && largest >> shift; shift += BITS) {
    size_t begins[RANGE + 1] = {};
    for (const int32_t node : nodes) begins[(node >> shift) % RANGE + 1]++;
    for (int i = 0; i < RANGE; i++) begins[i + 1] += begins[i];
    for (const int32_t node : nodes) other[begins[(node >> shift) % RANGE]++] = node;
    nodes.swap(other);
  }
}

}  // namespace

int64_t count_drawn(const Unchecked& pairs, const int64_t* nodes, int64_t count, int64_t most,
                    int64_t* begins) {
  int64_t total = begins[0] = 0;
  for (int64_t i = 0; i < count; i++) {
    if (i + AHEAD < count && is_one_of(nodes[i + AHEAD], pairs.graph.num)) {
      __builtin_prefetch(pairs.graph.pointer + nodes[i + AHEAD]);
    }
    int64_t first, degree;
    if (!look_up(pairs, nodes[i], first, degree)) return -1;
    total += most < 0 ? degree : std::min(degree, most);
    begins[i + 1] = total;
  }
  return total;
}

bool draw_pairs(const Unchecked& pairs, const int64_t* nodes, int64_t count, int64_t most,
                int64_t seed, const int64_t* begins, int threads, int32_t* sources,
                int64_t* places) {
  constexpr int64_t TASK = 256;
  const Graph& graph = pairs.graph;
  const uint32_t of_seed = hash_seed(seed);
  std::atomic<bool> wrong{false};
  share((count + TASK - 1) / TASK, threads, [&](int64_t task, int) {
    const int64_t end = std::min(count, (task + 1) * TASK);
    Subset subset;
    for (int64_t i = task * TASK; i < end; i++) {
      int64_t first = 0, degree = 0, *slots = places + begins[i];
      const bool known = look_up(pairs, nodes[i], first, degree);
      const int64_t taken = most < 0 ? degree : std::min(degree, most);
      if (!known || begins[i + 1] - begins[i] != taken) {
        wrong.store(true, std::memory_order_relaxed);
        return;
      }
      if (taken < degree) {
        const auto node = uint64_t(nodes[i]);
        const uint32_t state = hash_absorb(hash_absorb(of_seed, uint32_t(node)), node >> 32);
        subset.draw(degree, taken, state, slots);
      } else {
        for (int64_t j = 0; j < taken; j++) slots[j] = j;
      }
      for (int64_t j = 0; j < taken; j++) {
        slots[j] += first;
        __builtin_prefetch(graph.other + slots[j]);
        if (graph.place.narrow) __builtin_prefetch(graph.place.narrow + slots[j]);
      }
    }
    for (int64_t j = begins[task * TASK]; j < begins[end]; j++) {
      const int64_t slot = places[j];
      sources[j] = graph.other[slot];
      places[j] = graph.place[slot];
    }
  });
  return !wrong;
}

bool give_numbers(const int64_t* nodes, int64_t count, int32_t* numbers, int64_t num) {
  for (int64_t i = 0; i < count; i++) {
    if (!is_one_of(nodes[i], num)) return false;
  }
  for (int64_t i = 0; i < count; i++) {
    int32_t& number = numbers[nodes[i]];
    if (number < 0) number = int32_t(i);
  }
  return true;
}

bool take_numbers(const int64_t* nodes, int64_t count, int32_t* numbers, int64_t num) {
  bool known = true;
  for (int64_t i = 0; i < count; i++) {
    const bool one = is_one_of(nodes[i], num);
    if (one) numbers[nodes[i]] = -1;
    known &= one;
  }
  return known;
}

int64_t number_nodes(const int32_t* nodes, int64_t count, int64_t first, int32_t* numbers,
                     int64_t num, int threads, int64_t* fresh, int32_t* to) {
  constexpr int64_t TASK = 1 << 14;
  constexpr int32_t FOUND = -2;  // a node that some thread has in its list
  const int64_t tasks = (count + TASK - 1) / TASK;
  std::vector<std::vector<int32_t>> found;  // by each worker
  found.resize(size_t(std::max<int64_t>(1, std::min<int64_t>(threads, tasks))));
  std::atomic<bool> wrong{false};
  share(tasks, threads, [&](int64_t task, int worker) {
    auto& list = found[size_t(worker)];
    const int64_t end = std::min(count, (task + 1) * TASK);
    for (int64_t j = task * TASK; j < end; j++) {
      if (j + AHEAD < end && is_one_of(nodes[j + AHEAD], num)) {
        __builtin_prefetch(numbers + nodes[j + AHEAD]);
      }
      if (!is_one_of(nodes[j], num)) {
        wrong.store(true, std::memory_order_relaxed);
        continue;
      }
      int32_t* number = numbers + nodes[j];
      if (__atomic_load_n(number, __ATOMIC_RELAXED) == -1 &&
          __atomic_exchange_n(number, FOUND, __ATOMIC_RELAXED) == -1) {
        list.push_back(nodes[j]);
      }
    }
  });
  std::vector<int32_t>& all = found[0];
  for (size_t i = 1; i < found.size(); i++) all.insert(all.end(), found[i].begin(), found[i].end());
  if (wrong) {
    for (const int32_t node : all) numbers[node] = -1;
    return -1;
  }
  sort_nodes(all);
  for (size_t i = 0; i < all.size(); i++) {
    if (i + AHEAD < all.size()) __builtin_prefetch(numbers + all[i + AHEAD]);
    numbers[all[i]] = int32_t(first + int64_t(i));
    fresh[i] = all[i];
  }
  share(tasks, threads, [&](int64_t task, int) {
    const int64_t end = std::min(count, (task + 1) * TASK);
    for (int64_t j = task * TASK; j < end; j++) {
      if (j + AHEAD < end) __builtin_prefetch(numbers + nodes[j + AHEAD]);
      to[j] = numbers[nodes[j]];
    }
  });
  return int64_t(all.size());
}

}  // namespace attn
