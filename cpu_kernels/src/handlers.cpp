// What XLA's CPU backend calls, each on one core: images [batch, height, width, channels], kernels
// [height, width, inputs, outputs], the layouts that JAX and Flax have. Nothing is reordered from
// layer to layer.

#include "direct.h"
#include "layers.h"
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

ffi::Error Convolution(Tensor x, Tensor kernel, Result y, int64_t stride, int64_t dilation,
                       int64_t top, int64_t left, bool swapped) {
  const auto in = image(x.dimensions()), out = image(y->dimensions());
  const auto shape = kernel.dimensions();
  const int64_t batch = x.dimensions()[0];
  const Kernel all{kernel.typed_data(), shape[0], shape[1], in.channels, out.channels, swapped};
  if (has_winograd(in, out, shape[0], shape[1], stride, dilation)) {
    const float* ordered = swapped ? in_order(all) : all.values;
    winograd(x.typed_data(), batch, in, ordered, top, left, y->typed_data(), out);
  } else {
    convolve(x.typed_data(), batch, in, all, {stride, dilation, top, left}, y->typed_data(), out);
  }
  return ffi::Error::Success();
}

ffi::Error KernelGradient(Tensor x, Tensor y, Result kernel, int64_t stride, int64_t top,
                          int64_t left) {
  const auto in = image(x.dimensions()), out = image(y.dimensions());
  const auto shape = kernel->dimensions();
  const int64_t batch = x.dimensions()[0];
  float* gradient = kernel->typed_data();
  if (has_winograd(in, out, shape[0], shape[1], stride, 1))
    winograd_kernel_gradient(x.typed_data(), batch, in, y.typed_data(), out, top, left, gradient);
  else
    kernel_gradient(x.typed_data(), batch, in, y.typed_data(), out, {stride, 1, top, left},
                    gradient, shape[0], shape[1]);
  return ffi::Error::Success();
}

ffi::Error ChannelSums(Floats x, Floats y, FloatsResult sum_x, FloatsResult sum_xy) {
  const int64_t channels = sum_x->element_count(), rows = x.element_count() / channels;
  channel_sums(x.typed_data(), y.typed_data(), rows, channels, sum_x->typed_data(),
               sum_xy->typed_data());
  return ffi::Error::Success();
}

ffi::Error HalveGradient(Tensor x, Tensor dy, Result dx) {
  halve_gradient(x.typed_data(), dy.typed_data(), x.dimensions()[0], image(x.dimensions()),
                 dx->typed_data());
  return ffi::Error::Success();
}

ffi::Error MirrorAndMove(Bytes images, Integers mirrored, Integers moves, BytesResult moved) {
  mirror_and_move(images.typed_data(), mirrored.typed_data(), moves.typed_data(),
                  images.dimensions()[0], image(images.dimensions()), moved->typed_data());
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    dimat_channel_sums, ChannelSums,
    ffi::Ffi::Bind().Arg<Floats>().Arg<Floats>().Ret<Floats>().Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(dimat_halve_gradient, HalveGradient,
                              ffi::Ffi::Bind().Arg<Tensor>().Arg<Tensor>().Ret<Tensor>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    dimat_mirror_and_move, MirrorAndMove,
    ffi::Ffi::Bind().Arg<Bytes>().Arg<Integers>().Arg<Integers>().Ret<Bytes>());
