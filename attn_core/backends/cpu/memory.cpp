#include "memory.h"

#include <mutex>
#include <new>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

// A sanitizer should see each block as one of its own.
#if defined(MADV_HUGEPAGE) && !defined(__SANITIZE_ADDRESS__)
#define ATTN_KEEPS_BLOCKS
#endif

namespace attn {
namespace {

constexpr int64_t LARGE = 4 << 20;  // bytes that large pages are worth their while for

#ifdef ATTN_KEEPS_BLOCKS
constexpr int64_t PAGE = 2 << 20, MOST = 256 << 20;  // bytes of a large page, and kept at most

// Who finds them locked does without, for a fork may have left them so.
std::mutex mutex;
std::vector<Block>& kept() {  // the one that was given back last at the end
  static auto* const blocks = new std::vector<Block>;  // threads may outlive the program's end
  return *blocks;
}

// The smallest block that is large enough, and not much larger.
Block take_kept(int64_t bytes) {
  const std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
  if (!lock) return {};
  auto& blocks = kept();
  auto best = blocks.end();
  for (auto one = blocks.begin(); one != blocks.end(); one++) {
    if (one->bytes < bytes || one->bytes > bytes + bytes / 8 + PAGE) continue;
    if (best == blocks.end() || one->bytes <= best->bytes) best = one;
  }
  if (best == blocks.end()) return {};
  const Block found = *best;
  blocks.erase(best);
  return found;
}

Block mapped(int64_t bytes) {
  bytes = (bytes + PAGE - 1) / PAGE * PAGE;
  void* const found = mmap(nullptr, size_t(bytes + PAGE), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) throw std::bad_alloc();
  char* const start = static_cast<char*>(found);
  const int64_t before = (PAGE - int64_t(reinterpret_cast<uintptr_t>(start) % PAGE)) % PAGE;
  if (before) munmap(start, size_t(before));
  if (before < PAGE) munmap(start + before + bytes, size_t(PAGE - before));
  use_large_pages(start + before, bytes);
  return {start + before, bytes};
}
#endif

}  // namespace

void use_large_pages(void* at, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < LARGE) return;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto start = reinterpret_cast<uintptr_t>(at), begin = (start + page - 1) / page * page;
  const auto end = (start + static_cast<uintptr_t>(bytes)) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // only a wish
#else
  (void)at, (void)bytes;
#endif
}

Block take(int64_t bytes) {
#ifdef ATTN_KEEPS_BLOCKS
  if (bytes >= LARGE) {
    const Block found = take_kept(bytes);
    return found.at ? found : mapped(bytes);
  }
#endif
  return {::operator new(size_t(bytes)), bytes};
}

void give(Block block) {
#ifdef ATTN_KEEPS_BLOCKS
  if (block.bytes >= LARGE) {
    std::vector<Block> out{block};
    if (const std::unique_lock<std::mutex> lock(mutex, std::try_to_lock); lock) {
      auto& blocks = kept();
      blocks.push_back(block);
      out.clear();
      int64_t bytes = 0;
      for (const Block& one : blocks) bytes += one.bytes;
      while (bytes > MOST) {
        bytes -= blocks.front().bytes;
        out.push_back(blocks.front());
        blocks.erase(blocks.begin());
      }
    }
    for (const Block& one : out) munmap(one.at, size_t(one.bytes));
    return;
  }
#endif
  ::operator delete(block.at);
}

int64_t let_go() {
  int64_t bytes = 0;
#ifdef ATTN_KEEPS_BLOCKS
  const std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
  if (!lock) return 0;
  for (const Block& one : kept()) {
    bytes += one.bytes;
    munmap(one.at, size_t(one.bytes));
  }
  kept().clear();
#endif
  return bytes;
}

}  // namespace attn
