// Convolutions by Winograd's minimal filtering F(2 x 2, 3 x 3) (Lavin and Gray 2016, arXiv
// 1509.09308, section 4.1): 2 x 2 outputs of a 3 x 3 kernel from 4 x 4 inputs by 16 products for a
// pair of channels instead of 36.
//
// The images are cut into patches of 4 x 4 pixels, two apart. Each patch x becomes 16 points, B'xB,
// which are multiplied by the points GkG' of the kernel k, each point by its own matrix [inputs,
// outputs]; the products m become 2 x 2 outputs, A'mA. The kernel's gradient is the adjoint: G'sG,
// s being the sum over patches of B'xB times AyA', y the gradients of 2 x 2 outputs. All entries of
// A, B and G are 0, 1, 1/2 or their negatives, so little is lost to rounding; but what is not a
// number reaches all outputs of the patches that it is in.

#pragma once

#include "tiles.h"

namespace dimat {

constexpr int64_t POINTS = 16;
constexpr int64_t PATCHES = 32;  // about as many are worked on at a time

// The images as patches. A piece is as many of them as are worked on at a time: whole rows of
// patches, of one image or of several.
struct Patches {
  Image in, out;
  int64_t top, left;      // pixels that the first patch begins before the image
  int64_t rows, columns;  // of patches in an image
  int64_t piece_images, piece_rows;

  // Floats from one point of a piece to the next. Points a power of two apart would all want the
  // same place in the cache.
  int64_t point(int64_t channels) const {
    return piece_images * piece_rows * columns * channels + LANES;
  }
};

inline Patches cut(const Image& in, const Image& out, int64_t top, int64_t left, int64_t batch) {
  const int64_t rows = ceil_div(out.height, 2), columns = ceil_div(out.width, 2);
  return {in,
          out,
          top,
          left,
          rows,
          columns,
          std::clamp<int64_t>(PATCHES / (rows * columns), 1, batch),
          std::clamp<int64_t>(PATCHES / columns, 1, rows)};
}

// Calls use(image, row, patch) for every row of patches of a piece, `patch` being its first.
template <typename Use>
int64_t each_row(const Patches& p, int64_t batch, int64_t image, int64_t row, Use use) {
  int64_t patch = 0;
  for (int64_t n = image; n < std::min(image + p.piece_images, batch); ++n)
    for (int64_t r = row; r < std::min(row + p.piece_rows, p.rows); ++r, patch += p.columns)
      use(n, r, patch);
  return patch;
}

// points[point][patch][channel], B'xB, of a row of patches of an image.
inline void image_points(const Patches& p, const float* image, int64_t row, const float* zeros,
                         float* points, int64_t point) {
  const int64_t channels = p.in.channels, first = 2 * row - p.top;
  const float* rows[4];  // of pixels
  for (int i = 0; i < 4; ++i)
    rows[i] = first + i >= 0 && first + i < p.in.height ? image + (first + i) * p.in.row() : zeros;
  for (int64_t c = 0; c < channels; c += LANES) {
    const auto column = [&](int64_t x, Vector(&t)[4]) {
      Vector d[4] = {};
      if (x >= 0 && x < p.in.width)
        for (int i = 0; i < 4; ++i) d[i] = load(rows[i] + x * channels + c);
      t[0] = d[0] - d[2], t[1] = d[1] + d[2], t[2] = d[2] - d[1], t[3] = d[1] - d[3];
    };
    Vector a[4], b[4];  // A patch's first two columns are the last two of the one before it.
    column(-p.left, a);
    column(1 - p.left, b);
    for (int64_t patch = 0; patch < p.columns; ++patch) {
      Vector d[4], e[4];
      column(2 * patch + 2 - p.left, d);
      column(2 * patch + 3 - p.left, e);
      float* to = points + patch * channels + c;
      for (int i = 0; i < 4; ++i, to += 4 * point) {
        store(to, a[i] - d[i]);
        store(to + point, b[i] + d[i]);
        store(to + 2 * point, d[i] - b[i]);
        store(to + 3 * point, b[i] - e[i]);
        a[i] = d[i], b[i] = e[i];
      }
    }
  }
}

// points[point][input * output], GkG', of a kernel [3, 3, size].
inline void kernel_points(const float* kernel, int64_t size, float* points) {
  for (int64_t at = 0; at < size; at += LANES) {
    Vector t[4][3];
    for (int j = 0; j < 3; ++j) {
      const float* from = kernel + j * size + at;
      const Vector a = load(from), b = load(from + 3 * size), c = load(from + 6 * size);
      t[0][j] = a, t[1][j] = .5f * (a + b + c), t[2][j] = .5f * (a - b + c), t[3][j] = c;
    }
    float* to = points + at;
    for (int i = 0; i < 4; ++i, to += 4 * size) {
      store(to, t[i][0]);
      store(to + size, .5f * (t[i][0] + t[i][1] + t[i][2]));
      store(to + 2 * size, .5f * (t[i][0] - t[i][1] + t[i][2]));
      store(to + 3 * size, t[i][2]);
    }
  }
}

// The outputs A'mA of a row of patches, `channels` of them from `to` on, from products
// m[point][patch][channel]. Those beyond the image's edge are left out.
inline void outputs_of(const Patches& p, const float* m, int64_t point, int64_t row,
                       int64_t channels, float* to) {
  const bool below = 2 * row + 1 < p.out.height;
  to += 2 * row * p.out.row();
  for (int64_t patch = 0; patch < p.columns; ++patch, to += 2 * p.out.channels)
    for (int64_t c = 0; c < channels; c += LANES) {
      const bool beside = 2 * patch + 1 < p.out.width;
      const float* from = m + patch * channels + c;
      Vector t[2][4];
      for (int j = 0; j < 4; ++j, from += point) {
        const Vector a = load(from), b = load(from + 4 * point), d = load(from + 8 * point),
                     e = load(from + 12 * point);
        t[0][j] = a + b + d, t[1][j] = b - d - e;
      }
      float* y = to + c;
      store(y, t[0][0] + t[0][1] + t[0][2]);
      if (beside) store(y + p.out.channels, t[0][1] - t[0][2] - t[0][3]);
      if (!below) continue;
      y += p.out.row();
      store(y, t[1][0] + t[1][1] + t[1][2]);
      if (beside) store(y + p.out.channels, t[1][1] - t[1][2] - t[1][3]);
    }
}

// points[point][patch][channel], AyA', of a row of patches of an image's output gradients.
inline void gradient_points(const Patches& p, const float* image, int64_t row, float* points,
                            int64_t point) {
  const int64_t channels = p.out.channels;
  const bool below = 2 * row + 1 < p.out.height;
  image += 2 * row * p.out.row();
  for (int64_t patch = 0; patch < p.columns; ++patch, image += 2 * channels)
    for (int64_t c = 0; c < channels; c += LANES) {
      const bool beside = 2 * patch + 1 < p.out.width;
      const Vector none{};
      Vector t[4][2];
      for (int j = 0; j < 2; ++j) {
        const float* from = image + j * channels + c;
        const bool inside = j == 0 || beside;
        const Vector a = inside ? load(from) : none;
        const Vector b = inside && below ? load(from + p.out.row()) : none;
        t[0][j] = a, t[1][j] = a + b, t[2][j] = a - b, t[3][j] = -b;
      }
      float* to = points + patch * channels + c;
      for (int i = 0; i < 4; ++i, to += 4 * point) {
        store(to, t[i][0]);
        store(to + point, t[i][0] + t[i][1]);
        store(to + 2 * point, t[i][0] - t[i][1]);
        store(to + 3 * point, -t[i][1]);
      }
    }
}

// A kernel's gradient [3, 3, size], G'sG, from sums s[point][input * output].
inline void kernel_of(const float* sums, int64_t size, float* kernel) {
  for (int64_t at = 0; at < size; at += LANES) {
    Vector t[3][4];
    for (int j = 0; j < 4; ++j) {
      const float* from = sums + j * size + at;
      const Vector a = load(from), b = load(from + 4 * size), d = load(from + 8 * size),
                   e = load(from + 12 * size);
      t[0][j] = a + .5f * (b + d), t[1][j] = .5f * (b - d), t[2][j] = .5f * (b + d) + e;
    }
    float* to = kernel + at;
    for (int i = 0; i < 3; ++i, to += 3 * size) {
      store(to, t[i][0] + .5f * (t[i][1] + t[i][2]));
      store(to + size, .5f * (t[i][1] - t[i][2]));
      store(to + 2 * size, .5f * (t[i][1] + t[i][2]) + t[i][3]);
    }
  }
}

inline const float* zero_row(const Image& image) {
  float* zeros = scratch<1>(image.row());
  std::fill_n(zeros, image.row(), 0.f);
  return zeros;
}

// Whether the functions below can be had for a convolution.
inline bool has_winograd(const Image& in, const Image& out, int64_t kernel_height,
                         int64_t kernel_width, int64_t stride, int64_t dilation) {
  return kernel_height == 3 && kernel_width == 3 && stride == 1 && dilation == 1 &&
         in.channels % LANES == 0 && out.channels % LANES == 0;
}

// A convolution with a kernel [3, 3, inputs, outputs].
inline void winograd(const float* x, int64_t batch, const Image& in, const float* kernel,
                     int64_t top, int64_t left, float* y, const Image& out) {
  const Patches p = cut(in, out, top, left, batch);
  const int64_t inputs = in.channels, outputs = out.channels;
  const int64_t in_point = p.point(inputs), out_point = p.point(2 * LANES);
  const float* zeros = zero_row(in);
  float* weights = scratch<2>(POINTS * inputs * outputs);
  float* points = scratch<3>(POINTS * in_point);
  float* products = scratch<4>(POINTS * out_point);
  kernel_points(kernel, inputs * outputs, weights);
  for (int64_t n = 0; n < batch; n += p.piece_images)
    for (int64_t row = 0; row < p.rows; row += p.piece_rows) {
      const int64_t patches = each_row(p, batch, n, row, [&](int64_t i, int64_t r, int64_t patch) {
        image_points(p, x + i * in.size(), r, zeros, points + patch * inputs, in_point);
      });
      for (int64_t channel = 0; channel < outputs; channel += 2 * LANES) {
        const int64_t channels = std::min<int64_t>(2 * LANES, outputs - channel);
        for (int64_t point = 0; point < POINTS; ++point) {
          const Run run{points + point * in_point, weights + point * inputs * outputs + channel,
                        inputs};
          const Job job{&run,    1, {0, inputs}, {0, channels},
                        outputs, 1, patches,     products + point * out_point,
                        channels};
          plane(job);
        }
        each_row(p, batch, n, row, [&](int64_t i, int64_t r, int64_t patch) {
          outputs_of(p, products + patch * channels, out_point, r, channels,
                     y + i * out.size() + channel);
        });
      }
    }
}

// The gradient of the kernel, [3, 3, inputs, outputs], from that of the outputs.
inline void winograd_kernel_gradient(const float* x, int64_t batch, const Image& in, const float* y,
                                     const Image& out, int64_t top, int64_t left, float* kernel) {
  const Patches p = cut(in, out, top, left, batch);
  const int64_t inputs = in.channels, outputs = out.channels, size = inputs * outputs;
  const int64_t in_point = p.point(inputs), out_point = p.point(outputs);
  const float* zeros = zero_row(in);
  float* sums = scratch<2>(POINTS * size);
  float* points = scratch<3>(POINTS * in_point);
  float* gradients = scratch<4>(POINTS * out_point);
  std::fill_n(sums, POINTS * size, 0.f);
  for (int64_t n = 0; n < batch; n += p.piece_images)
    for (int64_t row = 0; row < p.rows; row += p.piece_rows) {
      const int64_t patches = each_row(p, batch, n, row, [&](int64_t i, int64_t r, int64_t patch) {
        image_points(p, x + i * in.size(), r, zeros, points + patch * inputs, in_point);
        gradient_points(p, y + i * out.size(), r, gradients + patch * outputs, out_point);
      });
      for (int64_t point = 0; point < POINTS; ++point) {
        const Pixels pixels{points + point * in_point,
                            gradients + point * out_point,
                            1,
                            1,
                            patches,
                            0,
                            0,
                            inputs,
                            0,
                            0,
                            outputs};
        weight_plane(pixels, inputs, sums + point * size, outputs);
      }
    }
  kernel_of(sums, size, kernel);
}

}  // namespace dimat
