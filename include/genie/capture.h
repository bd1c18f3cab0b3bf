// Capture: the context style. While one is open, what its thread computes is captured for the remote device, also where the
// program never names that device:
//
//     torch::nn::Linear model(6, 3);               // on the CPU, never moved
//     const auto x = torch::randn({2, 6});
//     genie::Capture capture;
//     auto y = model->forward(x + torch::ones({6}));   // ones, add and linear are captured; the weights travel once
//     std::cout << y.cpu() << capture.graph().to_string();
//
// What is captured:
// - Factories that name no device make remote tensors: torch::ones, randn, arange, normal, randperm, ..., *_like and new_* of CPU
//   tensors too. Those that name one (torch::kCPU), a CPU generator, pinned memory or a layout that is not strided stay what they
//   are. torch::tensor({...}) cannot tell an explicit torch::kCPU from none: it is captured either way. torch::from_blob keeps
//   naming the program's memory, and is sent where it is used.
// - Operators compute on the remote device. CPU operands are lifted: their bytes are snapshotted when the operator is called, and
//   sent. A storage of libtorch's CPU allocator (parameters, buffers) travels once per version: it is sent again when the
//   tensor's version moved or the storage was opened for writing. Memory of others (from_blob, numpy, share_memory_(), files
//   that are mapped) is sent for each use, parameters over it too.
//   What needs no gradient and was sent once is kept on the node up to 256 MiB; what is sent again then stays as parameters do.
//   A write through a pointer that was taken before the storage was lifted is not seen: take the pointer again to write.
// - Views and copies (.clone(), .to(dtype), .contiguous()) of a CPU tensor, and in-place operators whose operands all lie on the
//   CPU, stay on the CPU; so do operators that the remote device does not have, and those of other namespaces than aten.
// - Lengths of sequences (those that are packed, and the batch sizes of packed ones) are the client's: remote ones are fetched.
// - Writing a result into a CPU tensor (an in-place operator or out= with a remote operand, running statistics of a batch
//   norm) flushes and writes it before the call returns.
// - Gradients reach CPU leaves: .grad lies on the CPU. In backward itself operators run where their operands are.
// Outside of a capture nothing of this holds: a remote tensor with a CPU tensor follows PyTorch's rules for two devices.
//
// Thread-safety: a capture belongs to the thread that opened it, and captures what that thread and the backward passes that it
//   calls issue. graph() may be called from any thread. In a child that is forked in a capture (a worker that loads data), nothing
//   is captured.
// Ownership: RAII; captures nest, an inner one's operators are part of the outer one too. It may end before a value was asked for:
//   what is captured is sent when it is needed. Bad order (an outer one that ends first) is allowed.
// Errors: genie::Error where no session can be opened; the destructor does not throw.
#pragma once

#include <c10/core/Device.h>

#include <memory>

#include "genie/graph.h"
#include "genie/status.h"

namespace genie {

class GENIE_API Capture {
 public:
  // For the device of the enclosing capture, else for the thread's current one: remote_accelerator:0 if nobody chose another.
  Capture();
  // For a session's device: Capture capture(session.device()).
  explicit Capture(c10::Device device);
  ~Capture();
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  c10::Device device() const;
  // Exactly the operators issued in its scope so far, in program order, whether they were sent, pruned or are pending.
  Graph graph() const;
  // As the destructor does. Idempotent.
  void end();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Whether the calling thread has a capture open.
GENIE_API bool is_capturing() noexcept;

}  // namespace genie
