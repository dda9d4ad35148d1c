// Memory that is written for the first time.
#pragma once
#include <cstdint>
#include <utility>

namespace attn {

// Asks for large pages, where the system has them on demand: a result of many megabytes is then
// there after a few page faults instead of thousands, each of which costs as much as the work of
// hundreds of edges.
void use_large_pages(void* at, int64_t bytes);

// Memory with anything in it. Large blocks that are given back are kept for the next ones of about
// their size, which meet no fresh page.
struct Block {
  void* at = nullptr;
  int64_t bytes = 0;
};
Block take(int64_t bytes);
void give(Block block);

// Lets go of what is kept; returns how many bytes that were.
int64_t let_go();

// Room for numbers.
template <class T>
class Room {
 public:
  Room() = default;
  explicit Room(int64_t count) : block(take(count * int64_t(sizeof(T)))) {}
  Room(Room&& other) noexcept { *this = std::move(other); }
  Room& operator=(Room&& other) noexcept {
    std::swap(block, other.block);
    return *this;
  }
  ~Room() { give(block); }
  T* get() const { return static_cast<T*>(block.at); }

 private:
  Block block;
};

}  // namespace attn
