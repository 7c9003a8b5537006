// Convolutions of 32-bit floats for XLA's CPU backend, on one core: images [batch, height, width,
// channels], kernels [height, width, inputs, outputs], the layouts that JAX and Flax have. Nothing
// is reordered from layer to layer.

#include "direct.h"
#include "winograd.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using namespace dimat;

namespace {

using Tensor = ffi::Buffer<ffi::F32, 4>;
using Result = ffi::ResultBuffer<ffi::F32, 4>;
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
