#include "frontend/capture/lift.h"

#include <ATen/ops/empty_strided.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CPUAllocator.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/node.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <deque>
#include <iterator>
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
// What needs no gradient and was sent once is kept up to that much, so that a data set that is walked through does not gather
// on the node.
constexpr uint64_t kOnceBytes = uint64_t{256} << 20;
// What is sent again before that much more was sent is in use, and stays: frozen weights are sent twice at most.
constexpr uint64_t kRememberedBytes = uint64_t{8} << 30;
constexpr uint64_t kLeastBytes = 4096;  // as which smaller ones count

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
  bool armed = false;    // its materializer is ours, and has not been called
  bool stays = false;    // as long as it lives: a parameter, or it was sent again
  uint64_t sent_at = 0;  // Cache::sent_once_bytes_ then
};

// What is to be let go: without the cache's lock, since storages that go take others.
using Dropped = std::vector<RemoteCopy>;

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

  void add(const at::Tensor& tensor, c10::Device device, int64_t version, const c10::Storage& copied) {
    const c10::Storage& storage = tensor.storage();
    c10::StorageImpl* impl = storage.unsafeGetStorageImpl();
    Dropped replaced;
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
    const bool again = source.sent_at != 0 && sent_once_bytes_ - source.sent_at < kRememberedBytes;
    source.stays = source.stays || again || tensor.requires_grad();
    if (!source.stays) keep_once(impl, source, replaced);
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
  // The oldest of those that were sent once make room.
  void keep_once(c10::StorageImpl* impl, Source& source, Dropped& dropped) {
    const uint64_t size_bytes = std::max<uint64_t>(impl->nbytes(), kLeastBytes);
    sent_once_bytes_ += size_bytes;
    source.sent_at = sent_once_bytes_;
    once_.push_back({impl, sent_once_bytes_, size_bytes});
    once_bytes_ += size_bytes;
    while (once_bytes_ > kOnceBytes && once_.size() > 1) {
      const Once oldest = once_.front();
      once_.pop_front();
      once_bytes_ -= oldest.size_bytes;
      const auto found = sources_.find(oldest.storage);
      // Another storage at its place was sent at another time.
      if (found == sources_.end() || found->second.stays || found->second.sent_at != oldest.sent_at) continue;
      std::ranges::move(found->second.copies, std::back_inserter(dropped));
      found->second.copies.clear();
    }
  }

  // Somebody is about to write: libtorch forgets the materializer, and we the copies.
  static void written(c10::StorageImpl* storage) {
    if (is_fetched(*storage)) claim_fetched(storage);
    if (!check_fork().ok()) return;  // a parent's thread may have held the lock; copies are not found here
    Cache& cache = instance();
    std::vector<RemoteCopy> stale;
    const std::lock_guard<std::mutex> guard(cache.mutex_);
    const auto found = cache.sources_.find(storage);
    if (found == cache.sources_.end()) return;
    found->second.armed = false;
    stale.swap(found->second.copies);
  }

  std::mutex mutex_;
  std::unordered_map<const c10::StorageImpl*, Source> sources_;
  size_t kept_ = 0;
  uint64_t added_bytes_ = 0;

  struct Once {
    const c10::StorageImpl* storage;
    uint64_t sent_at;
    uint64_t size_bytes;
  };
  std::deque<Once> once_;  // in the order in which they were sent
  uint64_t once_bytes_ = 0;
  uint64_t sent_once_bytes_ = 0;  // ever
};

// Memory that only libtorch hands out tells when it is written. Others' may change at any time.
bool tells_writes(const at::Tensor& tensor) {
  return tensor.storage().data_ptr().get_deleter() == c10::GetCPUAllocator()->raw_deleter() ||
         is_fetched(*tensor.storage().unsafeGetStorageImpl());
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
  cache.add(tensor, device, version, made);
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
  // the first gradient to be fetched finds all of them captured: one flush. Others run when eager would run what made the tensor:
  // that is the order in which gradients are summed further on.
  LiftBackward(torch::autograd::Edge edge, bool leaf) : Node(leaf ? 0 : edge.function->sequence_nr(), {edge}) {}
  std::string name() const override { return "LiftBackward"; }
  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override {
    if (!grads[0].defined()) return {at::Tensor()};
    return {grads[0].to(at::kCPU)};
  }
};

// That of a weight's transposition, as torch::nn::Linear makes one at each call. Where nobody looks at what made it, its gradient
// is turned on the device and summed with the weight's others there, in eager's order, to be fetched once.
class LiftTransposedBackward final : public torch::autograd::Node {
 public:
  LiftTransposedBackward(torch::autograd::Edge own, torch::autograd::Edge base)
      : Node(own.function->sequence_nr(), {base, own}), maker_(own.function.get()) {}
  std::string name() const override { return "LiftTransposedBackward"; }
  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override {
    if (!grads[0].defined()) return {at::Tensor(), at::Tensor()};
    if (is_looked_at()) return {at::Tensor(), grads[0].to(at::kCPU)};
    return {grads[0].t(), at::Tensor()};
  }

 private:
  // By hooks, or autograd::grad(loss, weight.t()).
  bool is_looked_at() const {
    if (!maker_->pre_hooks().empty() || !maker_->tensor_pre_hooks().empty() || !maker_->post_hooks().empty() ||
        !maker_->retains_grad_hooks().empty()) {
      return true;
    }
    const auto* plan = torch::autograd::get_current_graph_task_exec_info();
    if (plan == nullptr) return false;
    const auto found = plan->find(maker_);
    return found != plan->end() && found->second.captures_ != nullptr;
  }
  torch::autograd::Node* const maker_;  // kept by the edge
};

// One node per tensor for as long as any graph refers to it: what its uses give is summed on the node, and fetched once. Nodes
// keep nothing for backward, so that several passes may share one.
class Nodes {
 public:
  using Pointer = c10::intrusive_ptr<torch::autograd::Node>;

  // `base`: that of the lifted tensor which this one transposes, where there is one.
  Pointer of(const at::Tensor& tensor, const at::Tensor& lifted, const torch::autograd::Edge& base) {
    torch::autograd::Edge edge = torch::autograd::impl::gradient_edge(tensor);
    // A view hangs on its own edge, not on its base's: it may have hooks, be asked for its gradient, or turn it around.
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
    Pointer node;
    if (base.is_valid()) {
      node = c10::make_intrusive<LiftTransposedBackward>(std::move(edge), base);
    } else {
      node = c10::make_intrusive<LiftBackward>(std::move(edge), tensor.is_leaf());
    }
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

// Whether it is what PyTorch's own .t() and the like made of a leaf.
bool is_transposed_leaf(const at::Tensor& tensor) {
  if (tensor.dim() != 2 || tensor.is_leaf() || !tensor.is_view() || tensor.is_complex()) return false;
  const at::Tensor base(tensor._base());
  if (!base.is_leaf() || !base.requires_grad() || base.dim() != 2 || !can_lift(base) || !tells_writes(base))
    return false;
  const bool transposed = tensor.scalar_type() == base.scalar_type() &&
                          tensor.storage_offset() == base.storage_offset() && tensor.size(0) == base.size(1) &&
                          tensor.size(1) == base.size(0) && tensor.stride(0) == base.stride(1) &&
                          tensor.stride(1) == base.stride(0);
  if (!transposed || has_forward_grad(base) ||
      tensor.grad_fn()->next_edge(0).function != torch::autograd::impl::gradient_edge(base).function) {
    return false;
  }
  const std::string maker = tensor.grad_fn()->name();
  return maker == "TBackward0" || maker == "TransposeBackward0" || maker == "PermuteBackward0";
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
  torch::autograd::Edge base;
  if (is_transposed_leaf(tensor)) base = torch::autograd::impl::gradient_edge(lift(at::Tensor(tensor._base()), device));
  at::Tensor lifted = lift_value(tensor, device);
  torch::autograd::impl::set_gradient_edge(lifted, {nodes().of(tensor, lifted, base), 0});
  return lifted;
}

void forget_dead_copies() { Cache::instance().sweep(/*always=*/true); }
size_t lifted_storage_count() { return Cache::instance().size(); }

}  // namespace genie::frontend
