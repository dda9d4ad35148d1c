#include "parallel.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace attn {
namespace {

// GCC's OpenMP runtime, if torch has loaded it: to link with one would be to load a second.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
const Parallel gomp_parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));

struct Shared {
  const std::function<void(int64_t, int)>& work;
  int64_t tasks;
  std::atomic<int64_t> next{0};
  std::atomic<int> workers{0};

  void run() {
    const int worker = workers++;
    for (int64_t task; (task = next++) < tasks;) work(task, worker);
  }
};

}  // namespace

void share(int64_t tasks, int threads, const std::function<void(int64_t, int)>& work) {
  const int wanted = int(std::min<int64_t>(std::max(threads, 1), tasks));
  Shared shared{work, tasks};
  if (wanted <= 1) {
    shared.run();
  } else if (gomp_parallel) {
    gomp_parallel([](void* data) { static_cast<Shared*>(data)->run(); }, &shared, wanted, 0);
  } else {
    std::vector<std::thread> others;
    for (int i = 1; i < wanted; i++) others.emplace_back([&shared] { shared.run(); });
    shared.run();
    for (auto& other : others) other.join();
  }
}

std::vector<int64_t> cut_rows(const int64_t* pointer, int64_t num, int64_t most) {
  std::vector<int64_t> begins{0};
  for (int64_t row = 0; row < num; row++) {
    const int64_t first = begins.back();
    if (pointer[row + 1] + row - pointer[first] - first >= most) begins.push_back(row + 1);
  }
  begins.push_back(num);
  return begins;
}

const char* threading() { return gomp_parallel ? "openmp" : "std::thread"; }

}  // namespace attn
