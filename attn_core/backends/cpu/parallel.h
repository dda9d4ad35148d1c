// Work shared by the threads of torch's own OpenMP runtime.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

namespace attn {

// Calls work(task, worker) for every task in [0, tasks), each worker in [0, threads) in one thread
// at a time; which worker takes which task is left open.
void share(int64_t tasks, int threads, const std::function<void(int64_t, int)>& work);

// Where tasks of whole rows begin, each of about `most` pairs and rows, and where the last one ends.
std::vector<int64_t> cut_rows(const int64_t* pointer, int64_t num, int64_t most);

// Which threads `share` uses: "openmp" or "std::thread".
const char* threading();

}  // namespace attn
