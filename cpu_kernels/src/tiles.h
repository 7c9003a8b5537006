// What all convolutions are made of: sums of products in tiles that stay in registers, images with
// zeros around them, and memory that a thread keeps. All images are [height, width, channels].

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace dimat {

// Vectors as wide as the machine's, and as many pixels in a tile of two vectors as its registers
// hold; in a tile of one vector twice as many.
#if defined(__AVX512F__)
constexpr int LANES = 16, PIXELS = 8;
#elif defined(__AVX__)
constexpr int LANES = 8, PIXELS = 4;
#else
constexpr int LANES = 4, PIXELS = 8;
#endif
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector x) { *reinterpret_cast<Vector*>(to) = x; }

constexpr int64_t FIRST_CACHE = 24 << 10;    // bytes of images that stay close to the core
constexpr int64_t SECOND_CACHE = 512 << 10;  // bytes of weights or images that stay nearby

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t modulo(int64_t a, int64_t b) { return ((a % b) + b) % b; }
inline int64_t padded(int64_t channels) { return ceil_div(channels, LANES) * LANES; }

// Memory that a thread keeps from call to call. Each use has its own.
template <int USE>
float* scratch(int64_t size) {
  thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < size + LANES) memory.resize(size + LANES);
  const uintptr_t start = reinterpret_cast<uintptr_t>(memory.data()), line = 4 * LANES;
  return reinterpret_cast<float*>((start + line - 1) / line * line);  // no vector on two lines
}

struct Image {
  int64_t height, width, channels;
  int64_t row() const { return width * channels; }
  int64_t size() const { return height * row(); }
};

// Copies an image into a larger one, `top` and `left` pixels from its corner, and zeros around it.
inline void frame(const float* from, const Image& small, float* to, const Image& large, int64_t top,
                  int64_t left) {
  const int64_t before = left * large.channels, after = large.row() - before - small.row();
  std::fill_n(to, top * large.row(), 0.f);
  to += top * large.row();
  for (int64_t y = 0; y < small.height; ++y, from += small.row(), to += large.row()) {
    std::fill_n(to, before, 0.f);
    std::memcpy(to + before, from, sizeof(float) * small.row());
    std::fill_n(to + before + small.row(), after, 0.f);
  }
  std::fill_n(to, (large.height - top - small.height) * large.row(), 0.f);
}

// Sums of products over runs: out[pixel][channel] = sum over k of x[pixel][k] * w[k][channel].

struct Run {
  const float *x, *w;
  int64_t length;
};

struct Strides {
  int64_t row, column;
};

struct Job {
  const Run* runs;
  int64_t number_of_runs;
  Strides in, out;  // from one output pixel to the next, in the image and in the result
  int64_t weights;  // from one k to the next
  int64_t rows, columns;
  float* result;
  int64_t channels;  // of the result that are wanted, at most 2 * LANES
};

// STEP is job.in.column where it is known in advance, so that addresses need no register each; 0
// where it is not.
template <int ROWS, int COLUMNS, int VECTORS, int STEP>
void tile(const Job& job, int64_t row, int64_t column) {
  Vector sums[ROWS][COLUMNS][VECTORS] = {};
  const int64_t x_row = job.in.row, x_column = STEP > 0 ? STEP : job.in.column;
  const int64_t x_offset = row * x_row + column * x_column;
  for (int64_t r = 0; r < job.number_of_runs; ++r) {
    const float *x = job.runs[r].x + x_offset, *w = job.runs[r].w;
#pragma GCC unroll 2
    for (int64_t k = 0; k < job.runs[r].length; ++k, w += job.weights) {
      Vector weights[VECTORS];
      for (int v = 0; v < VECTORS; ++v) weights[v] = load(w + v * LANES);
#pragma GCC unroll 32
      for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 32
        for (int j = 0; j < COLUMNS; ++j) {
          const Vector value = x[i * x_row + j * x_column + k] - Vector{};
#pragma GCC unroll 2
          for (int v = 0; v < VECTORS; ++v) sums[i][j][v] += value * weights[v];
        }
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 32
    for (int j = 0; j < COLUMNS; ++j) {
      float* out = job.result + (row + i) * job.out.row + (column + j) * job.out.column;
      if (job.channels == VECTORS * LANES) {
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) store(out + v * LANES, sums[i][j][v]);
      } else {  // A copy: sums whose address is taken would not stay in registers.
        Vector copy[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) copy[v] = sums[i][j][v];
        std::memcpy(out, copy, sizeof(float) * job.channels);
      }
    }
}

template <int ROWS, int COLUMNS, int VECTORS, int STEP>
void band(const Job& job, int64_t row, int64_t column = 0) {
  for (; column + COLUMNS <= job.columns; column += COLUMNS)
    tile<ROWS, COLUMNS, VECTORS, STEP>(job, row, column);
  if constexpr (COLUMNS > 1) band<ROWS, COLUMNS / 2, VECTORS, STEP>(job, row, column);
}

template <int VECTORS, int STEP>
void plane(const Job& job) {
  constexpr int COLUMNS = 2 * PIXELS / VECTORS;
  int64_t row = 0;
  if (job.columns < COLUMNS)  // Two narrow rows fill a tile.
    for (; row + 2 <= job.rows; row += 2) band<2, COLUMNS / 2, VECTORS, STEP>(job, row);
  for (; row < job.rows; ++row) band<1, COLUMNS, VECTORS, STEP>(job, row);
}

inline void plane(const Job& job) {
  if (job.channels > LANES)
    plane<2, 0>(job);
  else if (job.in.column == 16)
    plane<1, 16>(job);
  else
    plane<1, 0>(job);
}

// Sums of products over pixels: w[k][channel] += sum over pixels of x[pixel][k] *
// y[pixel][channel].

struct Pixels {
  const float *x, *y;
  int64_t images, rows, columns;
  int64_t x_image, x_row, x_column, y_image, y_row, y_column;
};

template <int ROWS, int VECTORS>
void weight_tile(const Pixels& p, int64_t k, int64_t channel, float* w, int64_t weights) {
  Vector sums[ROWS][VECTORS];
#pragma GCC unroll 32
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v)
      sums[i][v] = load(w + (k + i) * weights + channel + v * LANES);
  for (int64_t n = 0; n < p.images; ++n)
    for (int64_t row = 0; row < p.rows; ++row) {
      const float* x = p.x + n * p.x_image + row * p.x_row + k;
      const float* y = p.y + n * p.y_image + row * p.y_row + channel;
      for (int64_t column = 0; column < p.columns; ++column, x += p.x_column, y += p.y_column) {
        Vector values[VECTORS];
        for (int v = 0; v < VECTORS; ++v) values[v] = load(y + v * LANES);
#pragma GCC unroll 32
        for (int i = 0; i < ROWS; ++i) {
          const Vector value = x[i] - Vector{};
#pragma GCC unroll 2
          for (int v = 0; v < VECTORS; ++v) sums[i][v] += value * values[v];
        }
      }
    }
#pragma GCC unroll 32
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v)
      store(w + (k + i) * weights + channel + v * LANES, sums[i][v]);
}

template <int ROWS, int VECTORS>
void weight_column(const Pixels& p, int64_t length, int64_t channel, float* w, int64_t weights,
                   int64_t k = 0) {
  for (; k + ROWS <= length; k += ROWS) weight_tile<ROWS, VECTORS>(p, k, channel, w, weights);
  if constexpr (ROWS > 1) weight_column<ROWS / 2, VECTORS>(p, length, channel, w, weights, k);
}

// All k of a run of `length`, and all channels: whole vectors of them.
inline void weight_plane(const Pixels& pixels, int64_t length, float* w, int64_t channels) {
  for (int64_t channel = 0; channel < channels; channel += 2 * LANES)
    if (channels - channel > LANES)
      weight_column<PIXELS, 2>(pixels, length, channel, w, channels);
    else
      weight_column<2 * PIXELS, 1>(pixels, length, channel, w, channels);
}

}  // namespace dimat
