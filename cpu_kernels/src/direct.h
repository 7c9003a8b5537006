// Convolutions as they are defined.
//
// Forward pass and input gradient are one function, for the latter is a convolution of the output's
// gradient, its pixels `dilation` apart. An output pixel is a sum over rows of the kernel; within a
// row the kernel's columns and input channels lie next to one another in the padded image, and so
// do their weights. A tile of pixels times vectors of output channels stays in registers; each step
// takes one scalar of each pixel and one vector of weights. The kernel's gradient is the same with
// the roles exchanged: a tile of weights stays in registers, and the steps go over pixels.

#pragma once

#include "tiles.h"

namespace dimat {

// Along one dimension: output q of a phase takes tap m from input first + q * stride + m, with the
// kernel's entry kernel + m * dilation. The outputs of a phase are `dilation` apart.
struct Phase {
  int64_t outputs, first, kernel, taps;
  int64_t last(int64_t stride) const { return first + (outputs - 1) * stride + taps - 1; }
};

inline std::vector<Phase> phases(int64_t size, int64_t kernel, int64_t dilation, int64_t low) {
  std::vector<Phase> found;
  for (int64_t i = 0; i < std::min(dilation, size); ++i) {
    const int64_t k = modulo(low - i, dilation);
    found.push_back({ceil_div(size - i, dilation), (i + k - low) / dilation, k,
                     k < kernel ? ceil_div(kernel - k, dilation) : 0});
  }
  return found;
}

// How many zeros the inputs need before them, and how many inputs there are with those after them.
inline std::pair<int64_t, int64_t> extent(const std::vector<Phase>& phases, int64_t stride,
                                          int64_t size) {
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
inline void pack(const Kernel& kernel, const Phase& down, const Phase& across, int64_t dilation,
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

// A swapped kernel as [height, width, inputs, outputs], for whole vectors of outputs.
inline const float* in_order(const Kernel& kernel) {
  float* to = scratch<0>(kernel.height * kernel.width * kernel.inputs * kernel.outputs);
  pack(kernel, {0, 0, 0, kernel.height}, {0, 0, 0, kernel.width}, 1, to);
  return to;
}

struct Geometry {
  int64_t stride, dilation, top, left;
};

inline void convolve(const float* x, int64_t batch, const Image& in, const Kernel& kernel,
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

  // Weights that do not stay close go through several images before they are fetched again.
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
              runs[tap] = {
                  source + i * framed.size() + (rows.first + tap + top) * framed.row() +
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
            plane(job);
          }
  }
}

inline void kernel_gradient(const float* x, int64_t batch, const Image& in, const float* y,
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
        weight_plane(pixels, length, to, outputs);
      }
  }
  if (fills)
    for (int64_t k = 0; k < kernel_height * length; ++k)
      std::memcpy(w + k * out.channels, sums + k * outputs, sizeof(float) * out.channels);
}

}  // namespace dimat
