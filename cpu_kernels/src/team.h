// A thread, and those of XLA's pool that have time to help it.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace dimat {

// Cuts 0 to `size` into a part for each thread, calls work(part, first, last) for every part, and
// returns when all have ended. Parts are the same whoever works on them, and nobody waits for a
// helper that has not begun: a pool all of whose threads wait would never go on.
template <typename Work>
void share(xla::ffi::ThreadPool pool, int64_t threads, int64_t size, const Work& work) {
  struct Progress {
    std::atomic<int64_t> begun{0}, ended{0};
  };
  const int64_t parts = std::clamp<int64_t>(threads, 1, std::max<int64_t>(size, 1));
  const auto progress = std::make_shared<Progress>();
  const auto help = [progress, parts, size, &work] {
    for (int64_t i; (i = progress->begun++) < parts; ++progress->ended)
      work(i, i * size / parts, (i + 1) * size / parts);
  };
  for (int64_t i = 1; i < parts; ++i) pool.Schedule([help] { help(); });
  help();
  while (progress->ended < parts) std::this_thread::yield();
}

}  // namespace dimat
