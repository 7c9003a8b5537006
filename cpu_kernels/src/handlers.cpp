// What XLA's CPU backend calls: images [batch, height, width, channels], kernels [height, width,
// inputs, outputs], the layouts that JAX and Flax have. Nothing is reordered from layer to layer.

#include "direct.h"
#include "layers.h"
#include "team.h"
#include "winograd.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using namespace dimat;

namespace {

using Tensor = ffi::Buffer<ffi::F32, 4>;
using Result = ffi::ResultBuffer<ffi::F32, 4>;
using Floats = ffi::Buffer<ffi::F32>;
using FloatsResult = ffi::ResultBuffer<ffi::F32>;
using Bytes = ffi::Buffer<ffi::U8, 4>;
using BytesResult = ffi::ResultBuffer<ffi::U8, 4>;
using Integers = ffi::Buffer<ffi::S32>;
using Shape = ffi::Span<const int64_t>;

Image image(Shape shape) { return {shape[1], shape[2], shape[3]}; }

// Sums of `size` numbers, each part's its own, which are added into `total` in the end.
class PartialSums {
 public:
  PartialSums(int64_t parts, float* total, int64_t size)
      : total_(total), size_(size), others_((parts - 1) * size) {}
  float* of(int64_t part) { return part == 0 ? total_ : others_.data() + (part - 1) * size_; }
  void add() {
    for (size_t i = 0; i < others_.size(); ++i) total_[i % size_] += others_[i];
  }

 private:
  float* total_;
  int64_t size_;
  std::vector<float> others_;
};

ffi::Error Convolution(ffi::ThreadPool pool, Tensor x, Tensor kernel, Result y, int64_t threads,
                       int64_t stride, int64_t dilation, int64_t top, int64_t left, bool swapped) {
  const auto in = image(x.dimensions()), out = image(y->dimensions());
  const auto shape = kernel.dimensions();
  const Kernel all{kernel.typed_data(), shape[0], shape[1], in.channels, out.channels, swapped};
  share(pool, threads, x.dimensions()[0], [&](int64_t, int64_t first, int64_t last) {
    const float* from = x.typed_data() + first * in.size();
    float* to = y->typed_data() + first * out.size();
    if (has_winograd(in, out, shape[0], shape[1], stride, dilation))
      winograd(from, last - first, in, swapped ? in_order(all) : all.values, top, left, to, out);
    else
      convolve(from, last - first, in, all, {stride, dilation, top, left}, to, out);
  });
  return ffi::Error::Success();
}

ffi::Error KernelGradient(ffi::ThreadPool pool, Tensor x, Tensor dy, Result kernel, int64_t threads,
                          int64_t stride, int64_t top, int64_t left) {
  const auto in = image(x.dimensions()), out = image(dy.dimensions());
  const auto shape = kernel->dimensions();
  PartialSums sums(threads, kernel->typed_data(), kernel->element_count());
  share(pool, threads, x.dimensions()[0], [&](int64_t part, int64_t first, int64_t last) {
    const float* of_x = x.typed_data() + first * in.size();
    const float* of_y = dy.typed_data() + first * out.size();
    if (has_winograd(in, out, shape[0], shape[1], stride, 1))
      winograd_kernel_gradient(of_x, last - first, in, of_y, out, top, left, sums.of(part));
    else
      kernel_gradient(of_x, last - first, in, of_y, out, {stride, 1, top, left}, sums.of(part),
                      shape[0], shape[1]);
  });
  sums.add();
  return ffi::Error::Success();
}

ffi::Error ChannelSums(ffi::ThreadPool pool, Floats x, Floats y, FloatsResult sum_x,
                       FloatsResult sum_xy, int64_t threads) {
  const int64_t channels = sum_x->element_count(), rows = x.element_count() / channels;
  PartialSums of_x(threads, sum_x->typed_data(), channels);
  PartialSums of_xy(threads, sum_xy->typed_data(), channels);
  share(pool, threads, rows, [&](int64_t part, int64_t first, int64_t last) {
    channel_sums(x.typed_data() + first * channels, y.typed_data() + first * channels, last - first,
                 channels, of_x.of(part), of_xy.of(part));
  });
  of_x.add();
  of_xy.add();
  return ffi::Error::Success();
}

ffi::Error MaxPool2x2Gradient(ffi::ThreadPool pool, Tensor x, Tensor dy, Result dx,
                              int64_t threads) {
  const auto in = image(x.dimensions()), out = image(dy.dimensions());
  share(pool, threads, x.dimensions()[0], [&](int64_t, int64_t first, int64_t last) {
    max_pool_2x2_gradient(x.typed_data() + first * in.size(), dy.typed_data() + first * out.size(),
                          last - first, in, dx->typed_data() + first * in.size());
  });
  return ffi::Error::Success();
}

ffi::Error FlipAndShift(Bytes images, Integers flipped, Integers shifts, BytesResult shifted) {
  flip_and_shift(images.typed_data(), flipped.typed_data(), shifts.typed_data(),
                 images.dimensions()[0], image(images.dimensions()), shifted->typed_data());
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(dimat_convolution, Convolution,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Tensor>()
                                  .Arg<Tensor>()
                                  .Ret<Tensor>()
                                  .Attr<int64_t>("threads")
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("dilation")
                                  .Attr<int64_t>("top")
                                  .Attr<int64_t>("left")
                                  .Attr<bool>("swapped"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(dimat_kernel_gradient, KernelGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Tensor>()
                                  .Arg<Tensor>()
                                  .Ret<Tensor>()
                                  .Attr<int64_t>("threads")
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("top")
                                  .Attr<int64_t>("left"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(dimat_channel_sums, ChannelSums,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    dimat_max_pool_2x2_gradient, MaxPool2x2Gradient,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Tensor>().Arg<Tensor>().Ret<Tensor>().Attr<int64_t>(
        "threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    dimat_flip_and_shift, FlipAndShift,
    ffi::Ffi::Bind().Arg<Bytes>().Arg<Integers>().Arg<Integers>().Ret<Bytes>());
