// What stands between convolutions, where XLA's CPU backend goes over the data more often than it
// has to, or pixel by pixel.

#pragma once

#include "tiles.h"

namespace dimat {

// Sums of x, and of x times y, [rows, channels], over the rows.
//
// A stretch of memory after which channels stand in the same lanes again is a period. Sums over
// some rows are in 32 bits, and the sums of those in 64.
inline void channel_sums(const float* x, const float* y, int64_t rows, int64_t channels,
                         float* sum_x, float* sum_xy) {
  constexpr int64_t BLOCK = 8;      // vectors whose sums stay in registers
  constexpr int64_t PERIODS = 128;  // that are summed in 32 bits
  const int64_t vectors = ceil_div(BLOCK, channels) * channels;  // of a period
  const int64_t period = vectors * LANES, size = rows * channels, whole = size / period;
  std::vector<double> totals(2 * channels);
  double *of_x = totals.data(), *of_xy = totals.data() + channels;
  const auto add = [&](int64_t at, int64_t lanes, const float* sums, double* to) {
    for (int64_t i = 0; i < lanes; ++i) to[(at + i) % channels] += sums[i];
  };
  for (int64_t first = 0; first < whole; first += PERIODS)
    for (int64_t vector = 0; vector < vectors; vector += BLOCK) {
      const int64_t last = std::min(first + PERIODS, whole);
      const int64_t number = std::min(BLOCK, vectors - vector);
      Vector a[BLOCK] = {}, b[BLOCK] = {};
      for (int64_t p = first; p < last; ++p) {
        const int64_t at = p * period + vector * LANES;
        if (number == BLOCK) {
#pragma GCC unroll 8
          for (int v = 0; v < BLOCK; ++v) {
            const Vector value = load(x + at + v * LANES);
            a[v] += value, b[v] += value * load(y + at + v * LANES);
          }
        } else {
          for (int64_t v = 0; v < number; ++v) {
            const Vector value = load(x + at + v * LANES);
            a[v] += value, b[v] += value * load(y + at + v * LANES);
          }
        }
      }
      for (int64_t v = 0; v < number; ++v) {
        add((vector + v) * LANES, LANES, reinterpret_cast<float*>(&a[v]), of_x);
        add((vector + v) * LANES, LANES, reinterpret_cast<float*>(&b[v]), of_xy);
      }
    }
  for (int64_t at = whole * period; at < size; ++at) {
    of_x[at % channels] += x[at];
    of_xy[at % channels] += static_cast<double>(x[at]) * y[at];
  }
  std::copy_n(of_x, channels, sum_x);
  std::copy_n(of_xy, channels, sum_xy);
}

// The gradients of the pixels p and q, then r and s below them, from that of their maximum; the
// first of several largest takes it.
template <typename Number>
void of_pixels(Number p, Number q, Number r, Number s, Number g, Number (&to)[4]) {
  const Number none{};
  to[0] = (p >= q) & (p >= r) & (p >= s) ? g : none;
  to[1] = (q > p) & (q >= r) & (q >= s) ? g : none;
  to[2] = (r > p) & (r > q) & (r >= s) ? g : none;
  to[3] = (s > p) & (s > q) & (s > r) ? g : none;
}

// The gradient of the maximum of each 2 x 2 pixels.
inline void max_pool_2x2_gradient(const float* x, const float* dy, int64_t batch, const Image& in,
                                  float* dx) {
  const int64_t channels = in.channels;
  const int64_t places[4] = {0, channels, in.row(), in.row() + channels};
  for (int64_t row = 0; row < batch * in.height / 2; ++row, x += 2 * in.row(), dx += 2 * in.row())
    for (int64_t column = 0; column < in.width / 2; ++column, dy += channels) {
      int64_t at = 2 * column * channels, c = 0;
      for (; c + LANES <= channels; c += LANES, at += LANES) {
        Vector to[4];
        of_pixels(load(x + at), load(x + at + places[1]), load(x + at + places[2]),
                  load(x + at + places[3]), load(dy + c), to);
        for (int k = 0; k < 4; ++k) store(dx + at + places[k], to[k]);
      }
      for (; c < channels; ++c, ++at) {
        float to[4];
        of_pixels(x[at], x[at + places[1]], x[at + places[2]], x[at + places[3]], dy[c], to);
        for (int k = 0; k < 4; ++k) dx[at + places[k]] = to[k];
      }
    }
}

// Flips images of bytes from left to right, then cuts each out of zeros around it; a cut begins
// `shifts` rows and columns after the image does.
inline void flip_and_shift(const uint8_t* from, const int32_t* flipped, const int32_t* shifts,
                           int64_t batch, const Image& image, uint8_t* to) {
  const int64_t height = image.height, width = image.width, channels = image.channels;
  for (int64_t n = 0; n < batch; ++n, from += image.size()) {
    const int64_t down = shifts[2 * n], right = shifts[2 * n + 1];
    const int64_t first = std::clamp<int64_t>(-right, 0, width);
    const int64_t last = std::clamp<int64_t>(width - right, first, width);
    for (int64_t y = 0; y < height; ++y, to += image.row()) {
      const bool outside = y + down < 0 || y + down >= height;
      const uint8_t* row = from + (y + down) * image.row();
      std::memset(to, 0, (outside ? width : first) * channels);
      if (outside) continue;
      if (!flipped[n]) {
        std::memcpy(to + first * channels, row + (first + right) * channels,
                    (last - first) * channels);
      } else {
        for (int64_t x = first; x < last; ++x)
          for (int64_t c = 0; c < channels; ++c)
            to[x * channels + c] = row[(width - 1 - x - right) * channels + c];
      }
      std::memset(to + last * channels, 0, (width - last) * channels);
    }
  }
}

}  // namespace dimat
