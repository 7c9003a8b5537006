// Convolutions of 32-bit floats for XLA's CPU backend, on one core: images [batch, height, width,
// channels], kernels [height, width, inputs, outputs], the layouts that JAX and Flax have. Nothing
// is reordered but small kernels.
//
// Forward pass and input gradient are one function, for the latter is a convolution of the output's
// gradient, its pixels `dilation` apart. An output pixel is a sum over rows of the kernel; within a
// row the kernel's columns and input channels lie next to one another in the padded image, and so
// do their weights. A tile of pixels times vectors of output channels stays in registers; each step
// takes one scalar of each pixel and one vector of weights. The kernel's gradient is the same with
// the roles exchanged: a tile of weights stays in registers, and the steps go over pixels.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

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

constexpr int64_t FIRST_CACHE = 24 << 10;   // bytes of images that stay close to the core
constexpr int64_t SECOND_CACHE = 512 << 10;  // bytes of weights or images that stay nearby

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t modulo(int64_t a, int64_t b) { return ((a % b) + b) % b; }
int64_t padded(int64_t channels) { return ceil_div(channels, LANES) * LANES; }

// Memory that a thread keeps from call to call. Each use has its own.
template <int USE>
float* scratch(int64_t size) {
  thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < size) memory.resize(size);
  return memory.data();
}

struct Image {
  int64_t height, width, channels;
  int64_t row() const { return width * channels; }
  int64_t size() const { return height * row(); }
};

// Copies an image into a larger one, `top` and `left` pixels from its corner, and zeros around it.
void frame(const float* from, const Image& small, float* to, const Image& large, int64_t top,
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
  Strides in, out;    // from one output pixel to the next, in the image and in the result
  int64_t weights;    // from one k to the next
  int64_t rows, columns;
  float* result;
  int64_t channels;   // of the result that are wanted, at most 2 * LANES
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
    for (int64_t k = 0; k < job.runs[r].length; ++k, w += job.weights) {
      Vector weights[VECTORS];
      for (int v = 0; v < VECTORS; ++v)
        weights[v] = *reinterpret_cast<const Vector*>(w + v * LANES);
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
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < COLUMNS; ++j) {
      float* out = job.result + (row + i) * job.out.row + (column + j) * job.out.column;
      if (job.channels == VECTORS * LANES) {
        for (int v = 0; v < VECTORS; ++v)
          *reinterpret_cast<Vector*>(out + v * LANES) = sums[i][j][v];
      } else {
        std::memcpy(out, sums[i][j], sizeof(float) * job.channels);
      }
    }
}

template <int ROWS, int COLUMNS, int VECTORS, int STEP>
void band(const Job& job, int64_t row, int64_t column = 0) {
  for (; column + COLUMNS <= job.columns; column += COLUMNS)
    tile<ROWS, COLUMNS, VECTORS, STEP>(job, row, column);
  if constexpr (COLUMNS > 1) band<ROWS, COLUMNS / 2, VECTORS, STEP>(job, row, column);
}

template <int VECTORS, int STEP = 0>
void plane(const Job& job) {
  constexpr int COLUMNS = 2 * PIXELS / VECTORS;
  int64_t row = 0;
  if (job.columns < COLUMNS)  // Two narrow rows fill a tile.
    for (; row + 2 <= job.rows; row += 2) band<2, COLUMNS / 2, VECTORS, STEP>(job, row);
  for (; row < job.rows; ++row) band<1, COLUMNS, VECTORS, STEP>(job, row);
}

// The convolution ---------------------------------------------------------------------------------

// Along one dimension: output q of a phase takes tap m from input first + q * stride + m, with the
// kernel's entry kernel + m * dilation. The outputs of a phase are `dilation` apart.
struct Phase {
  int64_t outputs, first, kernel, taps;
  int64_t last(int64_t stride) const { return first + (outputs - 1) * stride + taps - 1; }
};

std::vector<Phase> phases(int64_t size, int64_t kernel, int64_t dilation, int64_t low) {
  std::vector<Phase> found;
  for (int64_t i = 0; i < std::min(dilation, size); ++i) {
    const int64_t k = modulo(low - i, dilation);
    found.push_back({ceil_div(size - i, dilation), (i + k - low) / dilation, k,
                     k < kernel ? ceil_div(kernel - k, dilation) : 0});
  }
  return found;
}

// How many zeros the inputs need before them, and how many inputs there are with those after them.
std::pair<int64_t, int64_t> extent(const std::vector<Phase>& phases, int64_t stride, int64_t size) {
  int64_t first = 0, last = size - 1;
  for (const Phase& phase : phases) {
    if (phase.taps == 0) continue;
    first = std::min(first, phase.first);
    last = std::max(last, phase.last(stride));
  }
  return {-first, last - first + 1};
}

struct Kernel {
  const float* values;
  int64_t height, width, inputs, outputs;
  bool swapped;  // [height, width, outputs, inputs]
  float at(int64_t y, int64_t x, int64_t in, int64_t out) const {
    const int64_t base = (y * width + x) * inputs * outputs;
    return values[base + (swapped ? out * inputs + in : in * outputs + out)];
  }
};

// A phase's part of the kernel, [taps down, taps across, inputs, outputs filled up with zeros].
void pack(const Kernel& kernel, const Phase& down, const Phase& across, int64_t dilation,
          float* to) {
  const int64_t outputs = padded(kernel.outputs);
  for (int64_t a = 0; a < down.taps; ++a)
    for (int64_t b = 0; b < across.taps; ++b, to += kernel.inputs * outputs) {
      const int64_t y = down.kernel + a * dilation, x = across.kernel + b * dilation;
      for (int64_t in = 0; in < kernel.inputs; ++in) {
        for (int64_t out = 0; out < kernel.outputs; ++out)
          to[in * outputs + out] = kernel.at(y, x, in, out);
        std::fill_n(to + in * outputs + kernel.outputs, outputs - kernel.outputs, 0.f);
      }
    }
}

struct Geometry {
  int64_t stride, dilation, top, left;
};

void convolve(const float* x, int64_t batch, const Image& in, const Kernel& kernel,
              const Geometry& g, float* y, const Image& out) {
  const auto down = phases(out.height, kernel.height, g.dilation, g.top);
  const auto across = phases(out.width, kernel.width, g.dilation, g.left);
  const auto [top, height] = extent(down, g.stride, in.height);
  const auto [left, width] = extent(across, g.stride, in.width);
  const Image framed{height, width, in.channels};
  const bool frames = framed.size() != in.size();
  const int64_t outputs = padded(out.channels);
  const bool packs = kernel.swapped || g.dilation > 1 || outputs != out.channels;
  const int64_t weights = kernel.height * kernel.width * in.channels * outputs;

  const float* packed = kernel.values;
  std::vector<int64_t> starts;
  if (packs) {
    float* to = scratch<0>(weights);
    packed = to;
    int64_t start = 0;
    for (const Phase& a : down)
      for (const Phase& b : across) {
        pack(kernel, a, b, g.dilation, to + start);
        starts.push_back(start);
        start += a.taps * b.taps * in.channels * outputs;
      }
  } else {
    starts.push_back(0);
  }

  // Weights that do not stay close go through several images before they are fetched anew.
  const int64_t close = 4 * weights <= SECOND_CACHE ? 1 : SECOND_CACHE / (4 * framed.size());
  const int64_t group = std::clamp<int64_t>(close, 1, batch);
  std::vector<Run> runs(kernel.height);
  for (int64_t n = 0; n < batch; n += group) {
    const int64_t images = std::min(group, batch - n);
    const float* source = x + n * in.size();
    if (frames) {
      float* to = scratch<1>(group * framed.size());
      for (int64_t i = 0; i < images; ++i)
        frame(source + i * in.size(), in, to + i * framed.size(), framed, top, left);
      source = to;
    }
    for (int64_t channel = 0; channel < outputs; channel += 2 * LANES)
      for (int64_t i = 0; i < images; ++i)
        for (size_t a = 0; a < down.size(); ++a)
          for (size_t b = 0; b < across.size(); ++b) {
            const Phase &rows = down[a], &columns = across[b];
            const int64_t length = columns.taps * in.channels;
            const int64_t taps = length > 0 ? rows.taps : 0;
            for (int64_t tap = 0; tap < taps; ++tap)
              runs[tap] = {source + i * framed.size() + (rows.first + tap + top) * framed.row() +
                               (columns.first + left) * in.channels,
                           packed + starts[a * across.size() + b] + tap * length * outputs + channel,
                           length};
            const Job job{runs.data(),
                          taps,
                          {g.stride * framed.row(), g.stride * in.channels},
                          {g.dilation * out.row(), g.dilation * out.channels},
                          outputs,
                          rows.outputs,
                          columns.outputs,
                          y + (n + i) * out.size() + a * out.row() + b * out.channels + channel,
                          std::min<int64_t>(out.channels - channel, 2 * LANES)};
            if (outputs - channel > LANES)
              plane<2>(job);
            else if (job.in.column == 16)
              plane<1, 16>(job);
            else
              plane<1>(job);
          }
  }
}

// The gradient of the kernel ----------------------------------------------------------------------

struct Pixels {
  const float *x, *y;
  int64_t images, rows, columns;
  int64_t x_image, x_row, x_column, y_image, y_row, y_column;
};

// w[k][channel] += sum over pixels of x[pixel][k] * y[pixel][channel]
template <int ROWS, int VECTORS>
void weight_tile(const Pixels& p, int64_t k, int64_t channel, float* w, int64_t weights) {
  Vector sums[ROWS][VECTORS];
  for (int i = 0; i < ROWS; ++i)
    for (int v = 0; v < VECTORS; ++v)
      sums[i][v] = *reinterpret_cast<Vector*>(w + (k + i) * weights + channel + v * LANES);
  for (int64_t n = 0; n < p.images; ++n)
    for (int64_t row = 0; row < p.rows; ++row) {
      const float* x = p.x + n * p.x_image + row * p.x_row + k;
      const float* y = p.y + n * p.y_image + row * p.y_row + channel;
      for (int64_t column = 0; column < p.columns; ++column, x += p.x_column, y += p.y_column) {
        Vector values[VECTORS];
        for (int v = 0; v < VECTORS; ++v)
          values[v] = *reinterpret_cast<const Vector*>(y + v * LANES);
#pragma GCC unroll 32
        for (int i = 0; i < ROWS; ++i) {
          const Vector value = x[i] - Vector{};
#pragma GCC unroll 2
          for (int v = 0; v < VECTORS; ++v) sums[i][v] += value * values[v];
        }
      }
    }
  for (int i = 0; i < ROWS; ++i)
    for (int v = 0; v < VECTORS; ++v)
      *reinterpret_cast<Vector*>(w + (k + i) * weights + channel + v * LANES) = sums[i][v];
}

template <int ROWS, int VECTORS>
void weight_column(const Pixels& p, int64_t length, int64_t channel, float* w, int64_t weights,
                   int64_t k = 0) {
  for (; k + ROWS <= length; k += ROWS) weight_tile<ROWS, VECTORS>(p, k, channel, w, weights);
  if constexpr (ROWS > 1) weight_column<ROWS / 2, VECTORS>(p, length, channel, w, weights, k);
}

void kernel_gradient(const float* x, int64_t batch, const Image& in, const float* y,
                     const Image& out, const Geometry& g, float* w, int64_t kernel_height,
                     int64_t kernel_width) {
  const int64_t outputs = padded(out.channels), length = kernel_width * in.channels;
  const Image framed{std::max(in.height + g.top, (out.height - 1) * g.stride + kernel_height),
                     std::max(in.width + g.left, (out.width - 1) * g.stride + kernel_width),
                     in.channels};
  const Image filled{out.height, out.width, outputs};
  const bool frames = framed.size() != in.size(), fills = outputs != out.channels;
  const int64_t weights = kernel_height * length * outputs;
  float* sums = fills ? scratch<0>(weights) : w;
  std::fill_n(sums, weights, 0.f);

  // Each piece of the images is gone through once for each tile of weights, and these are fetched
  // once for each piece.
  const int64_t near = std::clamp(weights, FIRST_CACHE, SECOND_CACHE);
  const int64_t row_bytes = 4 * (g.stride * framed.row() + filled.row());
  const int64_t rows = std::clamp<int64_t>(near / row_bytes, 1, out.height);
  const int64_t group = std::clamp<int64_t>(near / (row_bytes * out.height), 1, batch);
  for (int64_t n = 0; n < batch; n += group) {
    const int64_t images = std::min(group, batch - n);
    const float *from_x = x + n * in.size(), *from_y = y + n * out.size();
    if (frames) {
      float* to = scratch<1>(group * framed.size());
      for (int64_t i = 0; i < images; ++i)
        frame(from_x + i * in.size(), in, to + i * framed.size(), framed, g.top, g.left);
      from_x = to;
    }
    if (fills) {
      float* to = scratch<2>(group * filled.size());
      for (int64_t i = 0; i < images * out.height * out.width; ++i) {
        std::memcpy(to + i * outputs, from_y + i * out.channels, sizeof(float) * out.channels);
        std::fill_n(to + i * outputs + out.channels, outputs - out.channels, 0.f);
      }
      from_y = to;
    }
    for (int64_t row = 0; row < out.height; row += rows)
      for (int64_t tap = 0; tap < kernel_height; ++tap) {
        const Pixels pixels{from_x + (row * g.stride + tap) * framed.row(),
                            from_y + row * filled.row(),
                            images,
                            std::min(rows, out.height - row),
                            out.width,
                            framed.size(),
                            g.stride * framed.row(),
                            g.stride * in.channels,
                            filled.size(),
                            filled.row(),
                            outputs};
        float* to = sums + tap * length * outputs;
        for (int64_t channel = 0; channel < outputs; channel += 2 * LANES)
          if (outputs - channel > LANES)
            weight_column<PIXELS, 2>(pixels, length, channel, to, outputs);
          else
            weight_column<2 * PIXELS, 1>(pixels, length, channel, to, outputs);
      }
  }
  if (fills)
    for (int64_t k = 0; k < kernel_height * length; ++k)
      std::memcpy(w + k * out.channels, sums + k * outputs, sizeof(float) * out.channels);
}

// What XLA calls ----------------------------------------------------------------------------------

using Tensor = ffi::Buffer<ffi::F32, 4>;
using Result = ffi::ResultBuffer<ffi::F32, 4>;
using Shape = ffi::Span<const int64_t>;

Image image(Shape shape) { return {shape[1], shape[2], shape[3]}; }

ffi::Error Convolution(Tensor x, Tensor kernel, Result y, int64_t stride, int64_t dilation,
                       int64_t top, int64_t left, bool swapped) {
  const auto in = image(x.dimensions()), out = image(y->dimensions());
  const auto shape = kernel.dimensions();
  convolve(x.typed_data(), x.dimensions()[0], in,
           {kernel.typed_data(), shape[0], shape[1], in.channels, out.channels, swapped},
           {stride, dilation, top, left}, y->typed_data(), out);
  return ffi::Error::Success();
}

ffi::Error KernelGradient(Tensor x, Tensor y, Result kernel, int64_t stride, int64_t top,
                          int64_t left) {
  const auto shape = kernel->dimensions();
  kernel_gradient(x.typed_data(), x.dimensions()[0], image(x.dimensions()), y.typed_data(),
                  image(y.dimensions()), {stride, 1, top, left}, kernel->typed_data(), shape[0],
                  shape[1]);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(dimat_convolution, Convolution,
                              ffi::Ffi::Bind()
                                  .Arg<Tensor>()
                                  .Arg<Tensor>()
                                  .Ret<Tensor>()
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("dilation")
                                  .Attr<int64_t>("top")
                                  .Attr<int64_t>("left")
                                  .Attr<bool>("swapped"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(dimat_kernel_gradient, KernelGradient,
                              ffi::Ffi::Bind()
                                  .Arg<Tensor>()
                                  .Arg<Tensor>()
                                  .Ret<Tensor>()
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("top")
                                  .Attr<int64_t>("left"));
