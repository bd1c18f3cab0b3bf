#include "frontend/capture/lift.h"

#include <ATen/SequenceNumber.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CPUAllocator.h>
#include <torch/csrc/autograd/node.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "frontend/capture/copies.h"
#include "frontend/capture/lazy_tensor.h"
#include "frontend/capture/registry.h"

namespace genie::frontend {
namespace {

// A tensor that is a small part of its storage is sent alone: a batch out of a data set must not take the set along.
constexpr uint64_t kWholeBelow = uint64_t{1} << 20;
constexpr uint64_t kWholeFactor = 8;
// Dead copies are looked for when that much was added.
constexpr uint64_t kSweepBytes = uint64_t{1} << 20;

struct RemoteCopy {
  c10::Device device;
  const SessionCore* core;
  int64_t version;
  const void* address;
  uint64_t size_bytes;
  c10::Storage storage;
};

struct Source {
  explicit Source(c10::weak_intrusive_ptr<c10::StorageImpl> storage) : storage(std::move(storage)) {}
  c10::weak_intrusive_ptr<c10::StorageImpl> storage;
  std::vector<RemoteCopy> copies;
  bool armed = false;  // its materializer is ours, and has not been called
};

class Cache {
 public:
  // The remote copy that is still what the CPU storage holds.
  c10::Storage find(c10::StorageImpl* storage, c10::Device device, int64_t version) {
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto found = sources_.find(storage);
    if (found == sources_.end() || !found->second.armed) return {};
    for (const RemoteCopy& copy : found->second.copies) {
      const bool same = copy.device == device && copy.version == version && copy.address == storage->data() &&
                        copy.size_bytes == storage->nbytes();
      if (same && !copy.core->closed()) return copy.storage;
    }
    return {};
  }

  void add(const c10::Storage& storage, c10::Device device, int64_t version, const c10::Storage& copied) {
    c10::StorageImpl* impl = storage.unsafeGetStorageImpl();
    std::vector<RemoteCopy> replaced;  // let go without the lock
    const std::lock_guard<std::mutex> guard(mutex_);
    Source& source = sources_.try_emplace(impl, storage.getWeakStorageImpl()).first->second;
    if (!source.armed) {
      // What was fetched has one to keep it private, which ours then does; another's cannot be joined: a write would go unseen.
      if (is_fetched(*impl)) impl->clear_materializer();
      if (impl->has_materializer()) return;
      impl->set_materializer(&Cache::written);
      source.armed = true;
    }
    const auto old = std::ranges::find(source.copies, device, &RemoteCopy::device);
    if (old != source.copies.end()) {
      replaced.push_back(std::move(*old));
      source.copies.erase(old);
    }
    source.copies.push_back({device, &core_of(device.index()), version, impl->data(), impl->nbytes(), copied});
    added_bytes_ += impl->nbytes();
  }

  void sweep(bool always) {
    std::vector<Source> dead;
    const std::lock_guard<std::mutex> guard(mutex_);
    if (!always && added_bytes_ < kSweepBytes && sources_.size() < 2 * kept_ + 64) return;
    for (auto it = sources_.begin(); it != sources_.end();) {
      std::erase_if(it->second.copies, [](const RemoteCopy& copy) { return copy.core->closed(); });
      if (it->second.storage.expired()) {
        dead.push_back(std::move(it->second));
        it = sources_.erase(it);
      } else {
        ++it;
      }
    }
    kept_ = sources_.size();
    added_bytes_ = 0;
  }

  size_t size() {
    const std::lock_guard<std::mutex> guard(mutex_);
    return sources_.size();
  }

  static Cache& instance() {
    static auto* const cache = new Cache;  // leaked: storages outlive static destruction
    return *cache;
  }

 private:
  // Somebody is about to write: libtorch forgets the materializer, and we the copies.
  static void written(c10::StorageImpl* storage) {
    if (is_fetched(*storage)) claim_fetched(storage);
    Cache& cache = instance();
    std::vector<RemoteCopy> stale;
    const std::lock_guard<std::mutex> guard(cache.mutex_);
    const auto found = cache.sources_.find(storage);
    if (found == cache.sources_.end()) return;
    found->second.armed = false;
    stale.swap(found->second.copies);
  }

  std::mutex mutex_;
  std::unordered_map<c10::StorageImpl*, Source> sources_;
  size_t kept_ = 0;
  uint64_t added_bytes_ = 0;
};

// Memory that only libtorch hands out tells when it is written. Others' may change at any time, unless it is a parameter.
bool tells_writes(const at::Tensor& tensor) {
  return tensor.storage().data_ptr().get_deleter() == c10::GetCPUAllocator()->raw_deleter() ||
         is_fetched(*tensor.storage().unsafeGetStorageImpl()) || (tensor.is_leaf() && tensor.requires_grad());
}

bool goes_whole(const at::Tensor& tensor) {
  const uint64_t whole = tensor.storage().nbytes();
  return whole <= kWholeBelow || whole <= kWholeFactor * static_cast<uint64_t>(tensor.nbytes());
}

c10::Storage upload_storage(const at::Tensor& tensor, c10::Device device) {
  const auto size = static_cast<int64_t>(tensor.storage().nbytes());
  auto bytes = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(tensor.storage()), c10::DispatchKeySet(c10::DispatchKey::CPU), caffe2::TypeMeta::Make<uint8_t>());
  bytes.unsafeGetTensorImpl()->set_sizes_contiguous({size});
  return upload_copy(core_of(device.index()), device, bytes).storage();
}

c10::Storage remote_storage(const at::Tensor& tensor, c10::Device device) {
  Cache& cache = Cache::instance();
  const int64_t version = tensor.is_inference() ? -1 : tensor._version();
  if (c10::Storage known = cache.find(tensor.storage().unsafeGetStorageImpl(), device, version)) return known;
  c10::Storage made = upload_storage(tensor, device);
  cache.sweep(/*always=*/false);
  cache.add(tensor.storage(), device, version, made);
  return made;
}

at::Tensor lift_value(const at::Tensor& tensor, c10::Device device) {
  const auto options = at::TensorOptions(tensor.scalar_type()).device(device);
  if (tensor._is_zerotensor()) return at::zeros(tensor.sizes(), options);
  if (tensor.numel() == 0) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  if (!tells_writes(tensor) || !goes_whole(tensor)) return upload_copy(core_of(device.index()), device, tensor);
  at::Tensor made = tensor_over(remote_storage(tensor, device), tensor.sizes(), tensor.strides(), tensor.scalar_type());
  made.unsafeGetTensorImpl()->set_storage_offset(tensor.storage_offset());
  if (tensor.is_conj()) made._set_conj(true);
  if (tensor.is_neg()) made._set_neg(true);
  return made;
}

// The way back.
class LiftBackward final : public torch::autograd::Node {
 public:
  // That of a leaf runs after everything else that its device has to do in a backward pass (the lowest sequence number), so that
  // the first gradient to be fetched finds all of them captured: one flush. Others keep their place in the order, in which their
  // gradients are summed further on.
  LiftBackward(torch::autograd::Edge edge, bool leaf)
      : Node(leaf ? 0 : at::sequence_number::get_and_increment(), {std::move(edge)}) {}
  std::string name() const override { return "LiftBackward"; }
  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override {
    if (!grads[0].defined()) return {at::Tensor()};
    return {grads[0].to(at::kCPU)};
  }
};

// One node per tensor for as long as any graph refers to it: what its uses give is summed on the node, and fetched once. Nodes
// keep nothing for backward, so that several passes may share one.
class Nodes {
 public:
  using Pointer = c10::intrusive_ptr<torch::autograd::Node>;

  Pointer of(const at::Tensor& tensor, const at::Tensor& lifted) {
    torch::autograd::Edge edge = torch::autograd::impl::gradient_edge(tensor);
    // A node that is there keeps its edge's function alive: the key cannot name another one.
    const Key key{edge.function.get(), edge.input_nr, lifted.device().index()};
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto found = nodes_.find(key);
    if (found != nodes_.end()) {
      if (Pointer node = found->second.lock()) return node;
      nodes_.erase(found);
    }
    if (nodes_.size() >= 2 * kept_ + 64) {
      std::erase_if(nodes_, [](const auto& entry) { return entry.second.expired(); });
      kept_ = nodes_.size();
    }
    Pointer node = c10::make_intrusive<LiftBackward>(std::move(edge), tensor.is_leaf());
    node->add_input_metadata(lifted);
    nodes_.emplace(key, node);
    return node;
  }

 private:
  using Key = std::tuple<const torch::autograd::Node*, uint32_t, c10::DeviceIndex>;
  std::mutex mutex_;
  std::map<Key, c10::weak_intrusive_ptr<torch::autograd::Node>> nodes_;
  size_t kept_ = 0;
};

Nodes& nodes() {
  static auto* const instance = new Nodes;
  return *instance;
}

bool has_forward_grad(const at::Tensor& tensor) { return !tensor.is_inference() && tensor._fw_grad(0).defined(); }

// Whether no two of its elements lie at one place.
bool is_without_overlap(const at::Tensor& tensor) {
  std::vector<std::pair<int64_t, int64_t>> dimensions;  // stride, size
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    if (tensor.size(i) > 1) dimensions.emplace_back(tensor.stride(i), tensor.size(i));
  }
  std::ranges::sort(dimensions);
  int64_t reach = 1;
  for (const auto& [stride, size] : dimensions) {
    if (stride < reach) return false;
    reach = stride * size;
  }
  return true;
}

// weight.t() and the like: the leaf is lifted, and viewed there, so that all that its views are given is summed before it is
// fetched, in the order in which eager sums it.
bool is_view_of_leaf(const at::Tensor& tensor) {
  if (!tensor.is_view() || tensor.is_complex() || tensor.is_neg()) return false;
  const at::Tensor base(tensor._base());
  return base.is_leaf() && base.requires_grad() && base.scalar_type() == tensor.scalar_type() && can_lift(base) &&
         is_without_overlap(tensor) && !has_forward_grad(base);
}

at::Tensor view_like(const at::Tensor& base, const at::Tensor& view) {
  const bool same_start = base.storage_offset() == view.storage_offset();
  if (same_start && base.dim() == 2 && view.dim() == 2 && view.size(0) == base.size(1) &&
      view.size(1) == base.size(0) && view.stride(0) == base.stride(1) && view.stride(1) == base.stride(0)) {
    return base.t();
  }
  if (same_start && base.is_contiguous() && view.is_contiguous() && base.numel() == view.numel()) {
    return base.view(view.sizes());
  }
  return base.as_strided(view.sizes(), view.strides(), view.storage_offset());
}

}  // namespace

bool can_lift(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.device().is_cpu() || tensor.layout() != at::kStrided) return false;
  using enum c10::DispatchKey;
  constexpr c10::DispatchKeySet kSpecial({Python, Fake, Functionalize, Quantized, NestedTensor, FuncTorchBatched,
                                          BatchedNestedTensor, Batched, FuncTorchGradWrapper});
  return !tensor.key_set().has_any(kSpecial) && tensor.has_storage();
}

at::Tensor lift(const at::Tensor& tensor, c10::Device device) {
  if (has_forward_grad(tensor)) return tensor.to(device);
  if (!at::GradMode::is_enabled() || !tensor.requires_grad()) return lift_value(tensor, device);
  if (is_view_of_leaf(tensor)) return view_like(lift(at::Tensor(tensor._base()), device), tensor);
  at::Tensor lifted = lift_value(tensor, device);
  torch::autograd::impl::set_gradient_edge(lifted, {nodes().of(tensor, lifted), 0});
  return lifted;
}

void forget_dead_copies() { Cache::instance().sweep(/*always=*/true); }
size_t lifted_storage_count() { return Cache::instance().size(); }

}  // namespace genie::frontend
